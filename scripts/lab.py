"""Opens JupyterLab, and says in one line where it listens: `make lab` calls this."""

import os
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

import zmq
from jupyter_server.serverapp import ServerApp
from jupyterlab.labapp import LabApp


class OneLineServer(ServerApp):
    """A server that prints one line once it listens, in place of Jupyter's five."""

    def start_app(self):
        print(f"JupyterLab listens at {self.address()} (Ctrl-C twice stops it).", flush=True)
        self.identity_provider.token_generated = False  # Jupyter repeats the address of a token that it made up
        super().start_app()

    def address(self):
        """Where a browser finds what was asked for: the port that was free in the end, the token, the notebook."""
        everywhere = self.ip in ("", "*", "0.0.0.0", "::")
        parts = urlsplit(self.local_url if everywhere else self.public_url)
        if self.file_to_run:
            notebook = os.path.relpath(self.file_to_run, self.root_dir).replace(os.sep, "/")
            parts = parts._replace(path=f"{self.base_url.rstrip('/')}/lab/tree/{quote(notebook)}")
        return parts.geturl()


def has_window(platform=sys.platform, environment=os.environ):
    """Whether a browser could open a window; on a Linux without a screen, Python would start one in the terminal."""
    return platform != "linux" or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def encryption(possible):
    """A kernel and the server talk over TCP: in cipher where ZeroMQ can, else the kernel warns in the terminal."""
    return f"--MappingKernelManager.transport_encryption={'auto' if possible else 'disabled'}"


if __name__ == "__main__":
    LabApp.serverapp_class = OneLineServer
    quietly = ["--log-level=ERROR", "--LabApp.log_level=ERROR"]
    # What lies there keeps JupyterLab from asking whether it may fetch news.
    quietly += [f"--LabApp.app_settings_dir={Path(__file__).with_name('lab_settings')}"]
    window = [] if has_window() else ["--no-browser"]
    LabApp.launch_instance([*quietly, encryption(zmq.has("curve")), *window, *sys.argv[1:]])
