"""Python reads this as it starts where PYTHONPATH has this folder, as it has for JupyterLab's server and the kernels.

They reach no other machine; what they tried stands in the file that QLIB_REACHED names, one host a line.
"""

import os

from tests.loopback import guarded_functions


def write_down(host):
    with open(os.environ["QLIB_REACHED"], "a", encoding="utf-8") as file:
        file.write(f"{host}\n")
    raise OSError(f"a lesson reached for the network: {host!r}")


for owner, name, guarded in guarded_functions(write_down):
    setattr(owner, name, guarded)
