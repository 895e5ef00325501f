"""`python -m course.exercises.audit [03.1 …]`: what each check has been seen to reject, and what it lets through."""

import sys

from course.exercises import sandbox
from course.exercises.exercise import Value, all_exercises
from course.exercises.judge import Behaviour, wrong_signature
from course.exercises.mutations import mutants_of
from qlib.report import Table


def accepted(exercise, answers):
    """The names of those answers that the check takes for right, of (name, function or class).

    The case that showed the answer before to be wrong is tried first: it often shows it of the next.
    """
    names, number = [], 0
    for name, answer in answers:
        behaviour = Behaviour(exercise, answer)
        with sandbox.patience(2):  # one that runs on and on is not waited for long
            if wrong_signature(exercise, answer) or behaviour.wrong_on(number):
                continue
            if behaviour.first_wrong[1]:
                number = behaviour.first_wrong[0]
            elif not behaviour.broken:
                names.append(name)
    return names


def accepted_pairs(exercise):
    """The pairs of known mistakes that are taken for right: none, unless two mistakes make up for each other."""
    return accepted(exercise, ((pair.diagnosis, pair.answer_to(exercise.key)) for pair in exercise.pairs))


def has_mutations(exercise):
    """Whether there are mutations to try: there is code, and judging an answer takes no minutes."""
    return not isinstance(exercise.key, Value) and exercise.trial is None


def accepted_mutations(exercise):
    """The mutations of the key that are taken for right: those that are listed as equivalent, and survivors."""
    return accepted(exercise, mutants_of(exercise.key).items()) if has_mutations(exercise) else []


def survivors(exercise):
    """The mutations of the key that are taken for right and that are not listed as equivalent."""
    return [words for words in accepted_mutations(exercise) if words not in exercise.equivalent]


def audit(exercises):
    """A Table with a line for each exercise, and the survivors by exercise."""
    rows, left = [], {}
    for exercise in exercises:
        left[exercise.id] = survivors(exercise)
        rows.append(
            {
                "exercise": f"{exercise.id} {exercise.name}",
                "known mistakes": len(exercise.mistakes),
                "pairs": len(exercise.pairs),
                "pairs accepted": len(accepted_pairs(exercise)),
                "mutations": len(mutants_of(exercise.key)) if has_mutations(exercise) else 0,
                "equivalent": len(exercise.equivalent),
                "survivors": len(left[exercise.id]),
            }
        )
    return Table(rows), left


if __name__ == "__main__":
    chosen = [e for e in all_exercises().values() if not sys.argv[1:] or e.id.startswith(tuple(sys.argv[1:]))]
    table, left = audit(chosen)
    print(table)
    for exercise_id, words in left.items():
        print(*(f"{exercise_id} survives: {mutation}" for mutation in words), sep="\n", end="\n" if words else "")
