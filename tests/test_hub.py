"""The small Hub answers the real client as the Hub does: files there and back, commits, tokens, and what is missing."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from course import hub as hub_module
from course.hub import LARGEST_FILE, TOKEN, Hub, Session, open_hub
from tests.lessons import ROOT

REPO = "learner/tiny"


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    """The client may talk, to this machine (conftest.py sees to that), and keeps its cache in the test's folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    huggingface_hub.utils.disable_progress_bars()
    yield
    huggingface_hub.utils.enable_progress_bars()


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.url, token=False)
    api.create_repo(REPO)
    return api


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "sub" / "deep" / "a name with ü.txt").write_text("deep")
    return folder


def raw(hub, method, path, body=None, **headers):
    """A request as no client makes it: (status, what came back)."""
    request = urllib.request.Request(hub.url + path, body, headers, method=method)
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(urllib.request.urlopen(request))
        except urllib.error.HTTPError as error:
            answer = stack.enter_context(error)
        return answer.status, answer.read()


# ---------------------------------------------------------------- repos


def test_a_repo_is_made_once(api, hub):
    url = api.create_repo("learner/another")
    assert url == f"{hub.url}/learner/another"
    assert url.repo_id == "learner/another"
    with pytest.raises(HfHubHTTPError, match="You already created this model repo"):
        api.create_repo("learner/another")
    assert api.create_repo("learner/another", exist_ok=True) == url


def test_a_repo_without_a_namespace_is_the_learners_own(api):
    assert api.create_repo("mine").repo_id == "learner/mine"


def test_a_new_repo_holds_what_the_hub_puts_into_it(api):
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["initial commit"]


def test_a_deleted_repo_is_gone(api):
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


@pytest.mark.parametrize("name", ["a/..", "../b", "a/b--c", "a/b c", "a/b/c", "a/" + "n" * 97])
def test_a_name_that_is_no_repos_name_is_refused(api, hub, name):
    organization, _, name = name.partition("/")
    body = json.dumps({"organization": organization, "name": name}).encode()
    status, answer = raw(hub, "POST", "/api/repos/create", body)
    assert status == 400 and b"Invalid repo name" in answer


def test_a_dataset_is_refused_with_a_word(api):
    with pytest.raises(HfHubHTTPError, match="models only"):
        api.create_repo("learner/data", repo_type="dataset")


# ---------------------------------------------------------------- there and back


def test_a_folder_comes_back_to_the_byte(api, hub, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="all of it")
    assert "sub/deep/a name with ü.txt" in api.list_repo_files(REPO)
    found = snapshot_download(REPO, endpoint=hub.url, token=False)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert (type(path)(found) / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_a_folder_goes_up_through_the_pipeline_of_newer_clients_too(api, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    assert huggingface_hub.hf_api.is_xet_available()
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert len(api.list_repo_files(REPO)) == 4


def test_a_single_file_goes_up_from_a_path_or_from_memory(api, hub, folder):
    api.upload_file(repo_id=REPO, path_or_fileobj=folder / "config.json", path_in_repo="config.json")
    api.upload_file(repo_id=REPO, path_or_fileobj=b"", path_in_repo="sub/empty.txt")
    for path, content in (("config.json", b'{"model_type": "llama"}'), ("sub/empty.txt", b"")):
        with open(hf_hub_download(REPO, path, endpoint=hub.url, token=False), "rb") as file:
            assert file.read() == content


def test_what_is_known_of_a_repo_and_its_files(api, folder):
    commit = api.upload_folder(repo_id=REPO, folder_path=folder)
    info = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.author, info.sha, info.private) == (REPO, "learner", commit.oid, False)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes["weights.bin"] == 10_240 and len(sizes) == 4
    assert info.created_at <= info.last_modified
    (weights,) = api.get_paths_info(REPO, ["weights.bin", "missing"])
    assert (
        weights.size == 10_240
        and weights.blob_id == dict((s.rfilename, s.blob_id) for s in info.siblings)["weights.bin"]
    )
    assert api.file_exists(REPO, "weights.bin") and not api.file_exists(REPO, "missing")


def test_a_tree_is_listed_level_by_level_or_whole(api, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    top = [entry.path for entry in api.list_repo_tree(REPO)]
    assert top == [".gitattributes", "config.json", "sub", "weights.bin"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "sub")] == ["sub/deep"]
    whole = [entry.path for entry in api.list_repo_tree(REPO, "sub", recursive=True)]
    assert whole == ["sub/deep", "sub/deep/a name with ü.txt"]


# ---------------------------------------------------------------- the cache


def asked_for(hub, path):
    return [method for method, asked in hub.requests if asked.endswith(path)]


def test_a_file_that_is_cached_is_asked_about_and_not_sent_again(api, hub, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    first = hf_hub_download(REPO, "weights.bin", endpoint=hub.url, token=False)
    assert asked_for(hub, "/weights.bin") == ["HEAD", "GET"]
    assert hf_hub_download(REPO, "weights.bin", endpoint=hub.url, token=False) == first
    assert asked_for(hub, "/weights.bin") == ["HEAD", "GET", "HEAD"]


def test_a_file_that_changed_is_fetched_anew_and_the_old_one_stays(api, hub, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    old = hf_hub_download(REPO, "config.json", endpoint=hub.url, token=False)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"{}", path_in_repo="config.json")
    new = hf_hub_download(REPO, "config.json", endpoint=hub.url, token=False)
    with open(old, "rb") as before, open(new, "rb") as after:
        assert (before.read(), after.read()) == (b'{"model_type": "llama"}', b"{}")


def test_a_file_that_has_not_changed_is_not_sent_again(api, hub, folder):
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.requests.clear()
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert not [path for method, path in hub.requests if "/commit/" in path]


def test_part_of_a_file_can_be_asked_for(api, hub, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    path = f"/{REPO}/resolve/main/weights.bin"
    assert raw(hub, "GET", path, Range="bytes=0-7") == (206, bytes(range(8)))
    assert raw(hub, "GET", path, Range="bytes=10238-") == (206, bytes([254, 255]))
    assert raw(hub, "GET", path, Range="bytes=10240-")[0] == 416


# ---------------------------------------------------------------- commits and branches


def test_each_commit_can_be_had_by_its_hash(api, hub):
    commits = [
        api.upload_file(repo_id=REPO, path_or_fileobj=text, path_in_repo="a.txt", commit_message=text.decode())
        for text in (b"one", b"two", b"three")
    ]
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["three", "two", "one", "initial commit"]
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)][:3] == [commit.oid for commit in commits][::-1]
    for revision, text in [(commits[0].oid, "one"), (commits[1].oid, "two"), ("main", "three"), (None, "three")]:
        with open(hf_hub_download(REPO, "a.txt", revision=revision, endpoint=hub.url, token=False)) as file:
            assert file.read() == text
        assert api.model_info(REPO, revision=revision).sha == (
            commits[2].oid if revision in ("main", None) else revision
        )
    assert snapshot_download(REPO, revision=commits[0].oid, endpoint=hub.url, token=False).endswith(commits[0].oid)


def test_files_and_folders_are_deleted_in_a_commit(api, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    operations = [CommitOperationDelete("weights.bin"), CommitOperationDelete("sub/")]
    api.create_commit(REPO, [*operations, CommitOperationAdd("new.txt", b"new")], commit_message="tidy up")
    assert api.list_repo_files(REPO) == [".gitattributes", "config.json", "new.txt"]
    with pytest.raises(EntryNotFoundError):
        api.delete_file("weights.bin", REPO)


def test_a_branch_begins_at_a_revision_and_goes_its_own_way(api):
    api.upload_file(repo_id=REPO, path_or_fileobj=b"4", path_in_repo="bits")
    api.create_branch(REPO, branch="two/bits")
    api.upload_file(repo_id=REPO, path_or_fileobj=b"2", path_in_repo="bits", revision="two/bits")
    assert {branch.name for branch in api.list_repo_refs(REPO).branches} == {"main", "two/bits"}
    assert api.model_info(REPO, revision="two/bits").sha != api.model_info(REPO).sha
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="two/bits")
    api.create_branch(REPO, branch="two/bits", exist_ok=True)


def test_a_commit_on_something_that_has_moved_on_is_refused(api):
    before = api.model_info(REPO).sha
    add = {"repo_id": REPO, "path_in_repo": "a", "parent_commit": before}
    api.upload_file(path_or_fileobj=b"1", **add)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.upload_file(path_or_fileobj=b"2", **add)


# ---------------------------------------------------------------- what is missing, as the Hub says it


def test_a_missing_repo(api, hub):
    for ask in (
        lambda: api.model_info("learner/missing"),
        lambda: api.list_repo_files("learner/missing"),
        lambda: hf_hub_download("learner/missing", "config.json", endpoint=hub.url, token=False),
        lambda: hf_hub_download("missing", "config.json", endpoint=hub.url, token=False),
        lambda: snapshot_download("learner/missing", endpoint=hub.url, token=False),
        lambda: api.upload_file(repo_id="learner/missing", path_or_fileobj=b"", path_in_repo="a"),
    ):
        with pytest.raises(RepositoryNotFoundError) as raised:
            ask()
        assert raised.value.response.headers["X-Error-Code"] == "RepoNotFound"
    assert not api.repo_exists("learner/missing") and not api.file_exists("learner/missing", "config.json")


def test_a_missing_revision(api, hub):
    for ask in (
        lambda: api.model_info(REPO, revision="missing"),
        lambda: api.list_repo_files(REPO, revision="0" * 40),
        lambda: hf_hub_download(REPO, ".gitattributes", revision="missing", endpoint=hub.url, token=False),
        lambda: snapshot_download(REPO, revision="missing", endpoint=hub.url, token=False),
        lambda: api.upload_file(repo_id=REPO, path_or_fileobj=b"a", path_in_repo="a", revision="missing"),
    ):
        with pytest.raises(RevisionNotFoundError) as raised:
            ask()
        assert raised.value.response.status_code == 404
    assert not api.revision_exists(REPO, "missing") and api.revision_exists(REPO, "main")


def test_a_missing_file(api, hub):
    for ask in (
        lambda: hf_hub_download(REPO, "missing.safetensors", endpoint=hub.url, token=False),
        lambda: list(api.list_repo_tree(REPO, "missing")),
    ):
        with pytest.raises(EntryNotFoundError) as raised:
            ask()
        assert raised.value.response.status_code == 404


def test_a_request_that_it_does_not_know_is_answered_in_words(hub):
    status, answer = raw(hub, "GET", "/api/spaces/learner/app/runtime")
    assert status == 404 and b"does not know GET /api/spaces" in answer
    status, answer = raw(hub, "POST", "/api/repos/create", b"not json")
    assert status == 400 and b"makes no sense" in answer


# ---------------------------------------------------------------- tokens


@pytest.fixture
def guarded():
    with Hub(TOKEN) as hub:
        HfApi(endpoint=hub.url, token=TOKEN).create_repo(REPO)
        HfApi(endpoint=hub.url, token=TOKEN).create_repo("learner/secret", private=True)
        yield hub


def test_with_its_token_a_client_may_write_and_is_known(guarded):
    api = HfApi(endpoint=guarded.url, token=TOKEN)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"a", path_in_repo="a")
    assert api.whoami()["name"] == "learner"


def test_without_a_token_a_client_may_read_and_not_write(guarded):
    api = HfApi(endpoint=guarded.url, token=False)
    assert api.list_repo_files(REPO) == [".gitattributes"]
    for write in (
        lambda: api.create_repo("learner/new"),
        lambda: api.delete_repo(REPO),
        lambda: api.upload_file(repo_id=REPO, path_or_fileobj=b"a", path_in_repo="a"),
        lambda: api.create_branch(REPO, branch="mine"),
    ):
        with pytest.raises(HfHubHTTPError) as raised:
            write()
        assert raised.value.response.status_code == 401
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_a_wrong_token_is_told_so_even_for_reading(guarded):
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(endpoint=guarded.url, token="hf_wrong").model_info(REPO)


def test_a_private_repo_looks_missing_to_a_stranger(guarded):
    stranger = HfApi(endpoint=guarded.url, token=False)
    answers = []
    for name in ("learner/secret", "learner/missing"):
        with pytest.raises(RepositoryNotFoundError) as raised:
            stranger.model_info(name)
        answers.append((raised.value.response.status_code, raised.value.response.text))
    assert answers[0] == answers[1] and answers[0][0] == 401
    assert HfApi(endpoint=guarded.url, token=TOKEN).model_info("learner/secret").private


# ---------------------------------------------------------------- what it will not take


def commit_of(*operations):
    return b"".join(json.dumps(line).encode() + b"\n" for line in [{"key": "header", "value": {}}, *operations])


@pytest.mark.parametrize(
    "path",
    ["../evil", "/etc/passwd", "a/../../evil", "a//b", "", ".", "a/.git/config", "a\\b", "c:evil", "nul\0", None, 5],
)
def test_a_path_that_leaves_the_repo_is_refused_and_nothing_is_committed(api, hub, path):
    before = api.model_info(REPO).sha
    good = {"key": "file", "value": {"path": "good", "content": "YQ==", "encoding": "base64"}}
    evil = {"key": "file", "value": {"path": path, "content": "YQ==", "encoding": "base64"}}
    status, answer = raw(hub, "POST", f"/api/models/{REPO}/commit/main", commit_of(good, evil))
    assert status == 400 and b"Invalid path" in answer
    body = json.dumps({"files": [{"path": path, "size": 1, "sample": ""}]}).encode()
    assert raw(hub, "POST", f"/api/models/{REPO}/preupload/main", body)[0] == 400
    assert api.model_info(REPO).sha == before


@pytest.mark.parametrize("path", ["../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd"])
def test_nothing_outside_a_repo_can_be_read(api, hub, path):
    status, answer = raw(hub, "GET", f"/{REPO}/resolve/main/{path}")
    assert status == 404 and b"Entry not found" in answer


def test_a_large_file_is_refused_before_it_is_sent(api, hub, tmp_path):
    (tmp_path / "big.safetensors").write_bytes(b"\0" * (LARGEST_FILE + 1))
    with pytest.raises(HfHubHTTPError, match=r"big\.safetensors is 10\.0 MB; .*up to 10 MB.*smaller shards"):
        api.upload_file(repo_id=REPO, path_or_fileobj=tmp_path / "big.safetensors", path_in_repo="big.safetensors")
    assert not any("/commit/" in path for _, path in hub.requests)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ({"key": "lfsFile", "value": {"path": "a", "oid": "0" * 64}}, b"does not know the operation 'lfsFile'"),
        ({"key": "file", "value": {"path": "a", "content": "not base64!"}}, b"content of a is not base64"),
        ({"key": "file"}, b"makes no sense"),
    ],
)
def test_an_operation_that_it_cannot_do_is_refused_and_nothing_is_committed(api, hub, operation, words):
    status, answer = raw(hub, "POST", f"/api/models/{REPO}/commit/main", commit_of(operation))
    assert status == 400 and words in answer
    assert len(api.list_repo_commits(REPO)) == 1


def test_a_pull_request_is_refused_with_a_word(api):
    with pytest.raises(HfHubHTTPError, match="no pull requests"):
        api.upload_file(repo_id=REPO, path_or_fileobj=b"a", path_in_repo="a", create_pr=True)


def test_a_stopped_hub_answers_nobody_and_leaves_nothing_behind(folder):
    with Hub() as hub:
        api = HfApi(endpoint=hub.url, token=False)
        api.create_repo(REPO)
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert not hub.folder.exists()
    with pytest.raises(OSError):
        raw(hub, "GET", "/api/models/" + REPO)


# ---------------------------------------------------------------- transformers, and a lesson

TRANSFORMERS = """
import torch, transformers
from huggingface_hub.errors import RepositoryNotFoundError

config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=1)
model = transformers.LlamaForCausalLM(config).eval()
model.push_to_hub("learner/llama", commit_message="pushed")
assert transformers.AutoConfig.from_pretrained("learner/llama").hidden_size == 16
again = transformers.AutoModelForCausalLM.from_pretrained("learner/llama", dtype=torch.float32)
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
base = transformers.AutoModel.from_pretrained("learner/llama", dtype=torch.float32)
assert torch.equal(base.embed_tokens.weight, model.model.embed_tokens.weight)
config.hidden_size = 8
config.push_to_hub("learner/llama", revision="small")
assert transformers.AutoConfig.from_pretrained("learner/llama", revision="small").hidden_size == 8
assert transformers.AutoConfig.from_pretrained("learner/llama").hidden_size == 16
for name, revision in (("learner/missing", "main"), ("learner/llama", "missing")):
    try:
        transformers.AutoModel.from_pretrained(name, revision=revision)
    except OSError as error:
        print(" ".join(str(error).split())[:100])
"""


def python(code, **environment):
    """What a Python process with these variables prints."""
    full = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "QLIB_HUB"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=full | environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_pushes_and_pulls_a_model_by_its_name(guarded):
    said = python(TRANSFORMERS, **guarded.environment).splitlines()
    assert "learner/missing is not a local folder and is not a valid model identifier" in said[0]
    assert "missing is not a valid git identifier" in said[1]
    files = HfApi(endpoint=guarded.url, token=TOKEN).list_repo_files("learner/llama")
    assert {"README.md", "config.json", "model.safetensors"} <= set(files)


LESSON = """
from tests.hub import open_hub
hub = open_hub()
assert open_hub() is hub
from huggingface_hub import HfApi, hf_hub_download
for _ in range(2):  # as when a learner runs all cells again
    hub = open_hub()
    api = HfApi()
    api.create_repo(hub.repo_id)
    api.upload_file(repo_id=hub.repo_id, path_or_fileobj=b"a", path_in_repo="a.txt")
    print(open(hf_hub_download(hub.repo_id, "a.txt")).read(), hub.repo_id, hub.where, len(hub.new_requests()))
    assert hub.new_requests() == []
    hub.close()
"""


def test_a_lesson_opens_a_hub_for_itself_and_can_do_so_again():
    strict = {"QLIB_STRICT": "1", "QLIB_HUB_REPO": "someone/model"}  # whose repo no test may touch
    first, second = python(LESSON, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", **strict).splitlines()
    assert first == second
    assert first.startswith("a learner/code-model-4bit a small Hub on this machine")


def test_a_lesson_with_a_repo_and_a_token_talks_to_the_real_hub(monkeypatch):
    monkeypatch.setenv("QLIB_HUB_REPO", "someone/model")
    monkeypatch.delenv("QLIB_STRICT", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(RuntimeError, match="set HF_TOKEN"):
        open_hub()
    monkeypatch.setenv("HF_TOKEN", "hf_theirs")
    session = open_hub()
    assert (session.repo_id, session.where, session.new_requests()) == ("someone/model", "the Hugging Face Hub", [])
    assert "HF_ENDPOINT" not in os.environ
    session.close()
    assert Session.current is None


def test_a_hub_that_is_opened_too_late_says_so(monkeypatch):
    monkeypatch.delenv("QLIB_HUB_REPO", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(RuntimeError, match="Restart the kernel"):
        hub_module.open_hub()
