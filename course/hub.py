"""A small server that answers as the Hugging Face Hub does, on this machine, for lesson 13.

It takes what huggingface_hub 2.4 sends to make a model's repo, to fill it and to read it, from create_repo to
from_pretrained, and refuses the rest in words: datasets, branches, pull requests, large files. Whoever reaches it may
read and write; only this machine does. The files lie in memory under their hash: no name that a client sends becomes a
path, and all of it is gone when the server stops.
"""

import atexit
import base64
import collections
import dataclasses
import datetime
import hashlib
import http.server
import json
import os
import re
import shutil
import socketserver
import sys
import tempfile
import threading
import urllib.parse

USER = "learner"  # who everyone is here
LARGEST_FILE = 10 * 10**6  # bytes; what is larger, the real Hub takes by other ways
LARGEST_REQUEST = 64 * 10**6  # bytes: a commit holds all of its files, in base64
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"  # the file that every repo of the Hub begins with


class Refusal(Exception):
    """An answer that is not 200. `code` is what the client tells its exceptions by."""

    def __init__(self, status, message, code=None, **body):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


# ---------------------------------------------------------------- repos


def git_hash(content):
    """The hash that git gives to the bytes of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Commit:
    """A state of a repo, {path: bytes}, and its place in the history."""

    oid: str
    files: dict
    title: str
    date: str


class Repo:
    """A model's repo: one branch, main, and its commits, the oldest first."""

    def __init__(self):
        self.commits = []
        self.commit({".gitattributes": ATTRIBUTES}, "initial commit")

    def commit(self, files, title):
        """Put a new state on top. Returns the Commit."""
        before = [commit.oid for commit in self.commits]
        content = [before, title, {path: git_hash(file) for path, file in files.items()}]
        oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.commits.append(Commit(oid, files, title, now))
        return self.commits[-1]

    def find(self, revision):
        """The Commit of "main" or of a commit's hash."""
        for commit in reversed(self.commits):
            if revision in ("main", commit.oid):
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def check_path(path):
    """Refuse a file's name that would leave the repo's folder, or be no name at all, on a client's disk."""
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or any(part in ("", ".", "..", ".git") or re.search(r"[\0\\:]", part) for part in parts):
        raise Refusal(400, f"Invalid path in a repo: {path!r}")
    return path


def check_size(path, size):
    if size > LARGEST_FILE:
        limit = f"{path} is {size / 1e6:.1f} MB; this small server takes files of up to {LARGEST_FILE / 1e6:.0f} MB"
        raise Refusal(413, f"{limit}. Save the model in smaller shards.")


# ---------------------------------------------------------------- the server


class Server(http.server.ThreadingHTTPServer):
    """Listens on this machine's own address, which no other machine can reach. `port` 0 takes any that is free."""

    daemon_threads = True

    def __init__(self, port):
        self.repos, self.requests, self.lock = {}, [], threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def server_bind(self):
        # The parent's would also ask a name server for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        # A client that hangs up is no fault of the server's; anything else is.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


Answer = collections.namedtuple("Answer", "content status headers", defaults=[200, {}])


class Handler(http.server.BaseHTTPRequestHandler):
    """One request. HTTP/1.0: a connection each, so that none outlives the server."""

    def log_message(self, *_): ...

    def handle_any(self):
        try:
            answer = self.answer()
        except Refusal as refusal:
            answer = Answer(json.dumps(refusal.body).encode(), refusal.status, refusal.headers)
        self.send_response(answer.status)
        for key, value in {**answer.headers, "Content-Length": str(len(answer.content))}.items():
            # A header is a line of Latin-1; the whole message is in the body.
            self.send_header(key, value.encode("latin-1", "replace").decode("latin-1").replace("\n", " "))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    do_GET = do_HEAD = do_POST = handle_any

    def answer(self):
        url, size = urllib.parse.urlsplit(self.path), self.headers.get("Content-Length", "0")
        if not re.fullmatch(r"\d{1,9}", size) or int(size) > LARGEST_REQUEST:
            raise Refusal(413, f"This small server takes requests of up to {LARGEST_REQUEST / 1e6:.0f} MB")
        self.query, self.body = url.query, self.rfile.read(int(size))
        with self.server.lock:
            self.server.requests.append((self.command, url.path))
            try:
                answer = self.find_route(url.path)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise Refusal(400, f"This request makes no sense: {type(error).__name__}: {error}") from error
        return answer if isinstance(answer, Answer) else Answer(json.dumps(answer).encode())

    def find_route(self, path):
        method = "GET" if self.command == "HEAD" else self.command
        for known, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and known == method:
                return function(self, *(urllib.parse.unquote(part or "") for part in match.groups()))
        raise Refusal(404, f"This small server of models does not know {method} {path}")

    def repo(self, name):
        if name not in self.server.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.server.repos[name]

    # ------------------------------------------------------------ writing

    def create(self):
        asked = json.loads(self.body)
        if asked.get("type", "model") != "model":
            raise Refusal(400, f"This small server keeps models only, no {asked['type']}")
        name = f"{asked.get('organization') or USER}/{asked.get('name')}"
        if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", name, re.ASCII) or re.search(r"--|\.\.", name):
            raise Refusal(400, f"Invalid repo name: {name}")
        url = f"{self.server.url}/{name}"
        if name in self.server.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        self.server.repos[name] = Repo()
        return {"url": url, "name": name}

    def validate_card(self):
        return {"errors": [], "warnings": []}  # the Hub reads the card's header; we take any

    def prepare_upload(self, name, revision):
        """How to send each file: in the commit itself ("regular"). The hash of what is there spares sending it."""
        files, answers = self.repo(name).find(revision).files, []
        for file in json.loads(self.body)["files"]:
            path = check_path(file["path"])
            check_size(path, file["size"])
            answers.append({"path": path, "uploadMode": "regular", "shouldIgnore": False})
            answers[-1] |= {"oid": git_hash(files[path])} if path in files else {}
        return {"files": answers}

    def commit(self, name, revision):
        """A new commit, from lines of JSON: a header, then a file each. All of them are written, or none."""
        repo = self.repo(name)
        if "create_pr" in self.query:
            raise Refusal(400, "This small server has no pull requests")
        if repo.find(revision) is not repo.find("main"):
            raise Refusal(400, "This small server has no branches; a commit goes to main")
        title, files = "", dict(repo.find("main").files)
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                path = check_path(value["path"])
                files[path] = base64.b64decode(value["content"], validate=True)
                check_size(path, len(files[path]))
            else:
                raise Refusal(400, f"This small server does not know the operation {line['key']!r}")
        commit = repo.commit(files, title)
        return {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.server.url}/{name}/commit/{commit.oid}"}

    # ------------------------------------------------------------ reading

    def info(self, name, revision):
        commit = self.repo(name).find(revision or "main")
        return {"id": name, "sha": commit.oid, "siblings": [{"rfilename": path} for path in commit.files]}

    def list_files(self, name, revision, folder):
        files = self.repo(name).find(revision).files
        found = sorted(path for path in files if path.startswith(f"{folder}/" if folder else ""))
        if not found:
            raise Refusal(404, f"Entry not found: {folder}", "EntryNotFound")
        return [{"type": "file", "path": p, "oid": git_hash(files[p]), "size": len(files[p])} for p in found]

    def list_commits(self, name, revision):
        commits = self.repo(name).commits
        latest_first = commits[commits.index(self.repo(name).find(revision)) :: -1]
        who = {"authors": [{"user": USER}], "message": ""}
        return [{"id": commit.oid, "title": commit.title, "date": commit.date, **who} for commit in latest_first]

    def read(self, name, revision, path):
        commit = self.repo(name).find(revision)
        if path not in commit.files:
            raise Refusal(404, f"Entry not found: {path}", "EntryNotFound")
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{git_hash(content)}"'}
        return Answer(content, headers=headers)


REPO = r"([^/]+(?:/[^/]+)?)"
ROUTES = [
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_card),
    ("POST", rf"/api/models/{REPO}/preupload/([^/]+)", Handler.prepare_upload),
    ("POST", rf"/api/models/{REPO}/commit/([^/]+)", Handler.commit),
    ("GET", rf"/api/models/{REPO}(?:/revision/([^/]+))?", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)(?:/(.+))?", Handler.list_files),
    ("GET", rf"/api/models/{REPO}/commits/([^/]+)", Handler.list_commits),
    ("GET", rf"/{REPO}/resolve/([^/]+)/(.+)", Handler.read),
]


# ---------------------------------------------------------------- for a lesson


class RealHub:
    """The Hugging Face Hub, with "user/name" of the repo to push to. Of what it is asked, nothing is known here."""

    where, is_open = "the Hugging Face Hub", True

    def __init__(self, repo_id):
        if not os.environ.get("HF_TOKEN"):
            raise RuntimeError(
                "QLIB_HUB_REPO names a repo of the real Hub; set HF_TOKEN to a token that may write to it"
            )
        self.repo_id = repo_id

    def new_requests(self):
        return []

    def close(self):
        """What was pushed stays there."""
        self.is_open = False


class SmallHub:
    """The server, running until `close`, with "user/name" of the repo to push to."""

    where, is_open = "a small Hub on this machine", True

    def __init__(self, repo_id=f"{USER}/code-model-4bit", port=0):
        self.repo_id, self.server = repo_id, Server(port)
        self.cache = tempfile.mkdtemp(prefix="course-hub-")
        # A client that outlives this Hub makes its cache anew, and a kernel may be shut down without `close`.
        atexit.register(shutil.rmtree, self.cache, ignore_errors=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def new_requests(self):
        """The (method, path) of each request since the last call, in the order they came."""
        asked, self.server.requests = self.server.requests, []
        return asked

    def close(self):
        """Stop the server and forget what it kept."""
        self.is_open = False
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.cache, ignore_errors=True)

    @property
    def environment(self):
        """Variables for a process that takes this server for the Hub; they are read when it imports huggingface_hub."""
        proxies = {os.environ.get(name) for name in ("no_proxy", "NO_PROXY")} - {None, ""}
        around = ",".join([*sorted(proxies), "127.0.0.1"])
        return {
            "HF_ENDPOINT": self.server.url,
            "HF_HOME": self.cache,
            "HF_TOKEN": "",  # the learner's own is nothing that this server need see
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_ETAG_TIMEOUT": "60",
            "HF_HUB_DOWNLOAD_TIMEOUT": "60",  # seconds: a machine may be busy
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers would ask another server for it
            "no_proxy": around,
            "NO_PROXY": around,
        }


current = None  # the Hub that this process opened last


def open_hub():
    """Start a Hub on this machine and make this process take it for the real one.

    Call it before anything imports huggingface_hub or transformers, which read their settings once. Where the variable
    QLIB_HUB_REPO holds "user/name", nothing is started, and the lesson talks to the real Hub: HF_TOKEN must hold a
    token that may write to that repo. Under test (QLIB_STRICT=1) that variable is passed over.

    Returns:
        a SmallHub or a RealHub; the one that is open already, if there is one.

    Raises:
        RuntimeError: huggingface_hub has been imported and would talk to another Hub, or HF_TOKEN is missing.
    """
    global current
    if current is None or not current.is_open:
        repo_id = os.environ.get("QLIB_HUB_REPO")
        current = RealHub(repo_id) if repo_id and os.environ.get("QLIB_STRICT") != "1" else start_here()
    return current


def start_here():
    """A SmallHub that this process takes for the real one."""
    # What is imported keeps its settings, so a Hub that is opened again goes where the last one was.
    before = re.fullmatch(r"http://127\.0\.0\.1:(\d+)", os.environ.get("HF_ENDPOINT", ""))
    if "huggingface_hub" in sys.modules and not before:
        raise RuntimeError("open_hub() comes too late: huggingface_hub is imported already. Restart the kernel")
    hub = SmallHub(port=int(before[1]) if before else 0)
    os.environ.update(hub.environment)
    return hub
