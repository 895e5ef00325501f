"""A small server that speaks the Hugging Face Hub's HTTP interface on this machine, for the tests and for lesson 13.

with Hub() as hub:
    api = huggingface_hub.HfApi(endpoint=hub.url)

It keeps model repos, with their commits and branches, as long as it runs, and takes the requests that huggingface_hub
2.4 makes for create_repo, upload_folder, model_info, snapshot_download, from_pretrained, push_to_hub and their kin.
Datasets and Spaces, pull requests and large files (LFS, Xet) are refused with a word. A file's content lies under its
hash in a temporary folder, so that no name that a client sends ever becomes a path.
"""

import atexit
import base64
import binascii
import collections
import dataclasses
import datetime
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import socketserver
import sys
import tempfile
import threading
import urllib.parse

USER = "learner"  # who everyone is here
TOKEN = "hf_not_a_secret_and_only_good_on_this_machine"
LARGEST_FILE = 10 * 10**6  # bytes; what is larger, the Hub takes by other ways
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"  # the file that every repo of the Hub begins with


class HubError(Exception):
    """An answer that is not 200. `code` is what the client tells its exceptions by."""

    def __init__(self, status, message, code=None, **body):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


def wrong_token():
    return HubError(401, "Invalid credentials in Authorization header")


def no_token():
    return HubError(401, "Invalid username or password.")


def no_entry(path):
    return HubError(404, f"Entry not found: {path}", "EntryNotFound")


# ---------------------------------------------------------------- repos


@dataclasses.dataclass(frozen=True)
class Blob:
    """The content of a file, by its hash as git counts it."""

    oid: str
    size: int


@dataclasses.dataclass(frozen=True)
class Commit:
    """A state of a repo: {path: Blob}, and how it came about."""

    oid: str
    files: dict
    title: str
    message: str
    date: str
    parent: "Commit | None"

    @property
    def history(self):
        """This commit and those before it, the latest first."""
        commits, commit = [], self
        while commit:
            commits.append(commit)
            commit = commit.parent
        return commits


class Repo:
    """A model repo: its branches, each the latest of its commits, and the blobs of all of them."""

    def __init__(self, name, folder, private=False):
        self.name, self.folder, self.private = name, folder, private
        self.branches = {}
        self.commit("main", {".gitattributes": self.store(ATTRIBUTES)}, "initial commit")

    def store(self, content):
        """Keep the bytes of a file. Returns its Blob."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.folder / oid).write_bytes(content)
        return Blob(oid, len(content))

    def content(self, blob):
        return (self.folder / blob.oid).read_bytes()

    def commit(self, branch, files, title, message=""):
        """Put a new state on top of a branch. Returns the Commit."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        parent = self.branches.get(branch)
        said = [parent and parent.oid, title, message, now, {path: blob.oid for path, blob in files.items()}]
        oid = hashlib.sha1(json.dumps(said).encode()).hexdigest()
        self.branches[branch] = Commit(oid, files, title, message, now, parent)
        return self.branches[branch]

    def find(self, revision):
        """The Commit of a branch ("main", "refs/heads/main") or of a commit's hash."""
        branch = revision.removeprefix("refs/heads/")
        if branch in self.branches:
            return self.branches[branch]
        for commit in (commit for latest in self.branches.values() for commit in latest.history):
            if commit.oid == revision:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def entries(self, revision, folder="", recursive=True):
        """The files and folders under a folder, as the Hub lists them."""
        files = self.find(revision).files
        inside = f"{folder}/" if folder else ""
        found = {}
        for path, blob in files.items():
            if not path.startswith(inside):
                continue
            steps = path[len(inside) :].split("/")
            for depth in range(1, len(steps)):
                parent = inside + "/".join(steps[:depth])
                found[parent] = {"type": "directory", "oid": hashlib.sha1(parent.encode()).hexdigest(), "size": 0}
            found[path] = {"type": "file", "oid": blob.oid, "size": blob.size}
        if folder and not found:
            raise no_entry(folder)
        names = sorted(path for path in found if recursive or "/" not in path[len(inside) :])
        return [{**found[path], "path": path} for path in names]


def check_path(path):
    """Refuse names of files that would leave the repo's folder, or be no name at all, on a client's disk."""
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or any(part in ("", ".", "..", ".git") or re.search(r"[\0\\:]", part) for part in parts):
        raise HubError(400, f"Invalid path in a repo: {path!r}")
    return path


# ---------------------------------------------------------------- the server


class Hub:
    """The server, running from `with` on, or from `start` to `stop`.

    Args:
        token: what a client must show to write, or to see a private repo; None lets everyone do everything.
        port: where to listen; 0 for any port that is free.
    """

    def __init__(self, token=None, port=0):
        self.token, self.port = token, port
        self.repos, self.requests = {}, []  # requests: (method, path without the query), in the order they came
        self.lock = threading.Lock()

    def start(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="qlib-hub-"))
        self.server = Server(("127.0.0.1", self.port), Handler)
        self.server.hub = self
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self):
        """Variables for a process that takes this server for the Hub; they are read when it imports huggingface_hub."""
        proxies = {os.environ.get(name) for name in ("no_proxy", "NO_PROXY")} - {None, ""}
        around = ",".join([*sorted(proxies), "127.0.0.1"])
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder / "client"),  # a cache of its own, gone when the server stops
            "HF_TOKEN": self.token or "",
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

    def repo(self, name, known):
        """The Repo of a name. One that is missing looks to a stranger just like one that is private."""
        repo = self.repos.get(name)
        if repo is None or (repo.private and not known):
            raise HubError(404 if known else 401, "Repository not found", "RepoNotFound")
        return repo


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        # The parent's would also ask a name server for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        # A client that hangs up is no fault of the server's; anything else is.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


# What goes back to the client: bytes, the status and headers. A route may also return a value, to be sent as JSON.
Answer = collections.namedtuple("Answer", "content status headers", defaults=[200, {}])
ROUTES = []


def as_json(value):
    return json.dumps(value).encode()


def route(method, pattern):
    """Make a method of Handler answer the requests whose path fits; REPO and REVISION stand for what names one."""
    pattern = pattern.replace("REPO", r"(?P<name>[^/]+(?:/[^/]+)?)").replace("REVISION", r"(?P<revision>[^/]+)")

    def register(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Handler(http.server.BaseHTTPRequestHandler):
    """One request. HTTP/1.0: a connection each, so that none outlives the server."""

    def log_message(self, *_): ...

    def handle_any(self):
        hub, url = self.server.hub, urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append((self.command, url.path))
        try:
            with hub.lock:
                answer = self.answer_to(url.path)
        except HubError as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            answer = Answer(as_json(error.body), error.status, headers)
        self.send(answer)

    do_GET = do_HEAD = do_POST = do_DELETE = handle_any

    def check_token(self):
        """Whether the client is known: it shows the token, or there is none to show."""
        shown = self.headers.get("Authorization")
        if self.server.hub.token is None or shown == f"Bearer {self.server.hub.token}":
            return True
        if shown:
            raise wrong_token()
        return False

    def answer_to(self, path):
        self.known = self.check_token()
        try:
            return self.find_route(path)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise HubError(400, f"This request makes no sense: {type(error).__name__}: {error}") from error

    def find_route(self, path):
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and wanted == method:
                return function(self, **{k: urllib.parse.unquote(v) for k, v in match.groupdict(default="").items()})
        raise HubError(404, f"This small server of models does not know {method} {path}")

    def must_be_known(self):
        if not self.known:
            raise no_token()

    def repo(self, name):
        return self.server.hub.repo(name, self.known)

    def repo_to_write(self, name):
        self.must_be_known()
        return self.repo(name)

    def json(self):
        return json.loads(self.body or b"{}")

    def send(self, answer):
        content, status, headers = answer if isinstance(answer, Answer) else Answer(as_json(answer))
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers}.items():
            # A header is a line of Latin-1; the whole message is in the body.
            self.send_header(key, value.encode("latin-1", "replace").decode("latin-1").replace("\n", " "))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ------------------------------------------------------------ accounts and repos

    @route("GET", r"/api/whoami-v2")
    def whoami(self):
        self.must_be_known()
        return {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self):
        return {"errors": [], "warnings": []}  # the Hub reads the card's header; we take any

    def named(self):
        """The repo's name in the body of a request to create or delete it."""
        self.must_be_known()
        asked = self.json()
        if asked.get("type", "model") != "model":
            raise HubError(400, f"This small server keeps models only, no {asked['type']}")
        name = f"{asked.get('organization') or USER}/{asked.get('name')}"
        if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", name, re.ASCII) or re.search(r"--|\.\.", name):
            raise HubError(400, f"Invalid repo name: {name}")
        return name, asked

    @route("POST", r"/api/repos/create")
    def create(self):
        hub, (name, asked) = self.server.hub, self.named()
        url = f"{hub.url}/{name}"
        if name in hub.repos:
            raise HubError(409, "You already created this model repo", url=url)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        hub.repos[name] = Repo(name, pathlib.Path(tempfile.mkdtemp(dir=hub.folder)), private)
        return {"url": url, "name": name, "id": hashlib.sha1(name.encode()).hexdigest()[:24]}

    @route("DELETE", r"/api/repos/delete")
    def delete(self):
        name, _ = self.named()
        shutil.rmtree(self.repo(name).folder)
        del self.server.hub.repos[name]
        return {}

    # ------------------------------------------------------------ looking

    @route("GET", r"/api/models/REPO/revision/REVISION")
    @route("GET", r"/api/models/REPO")
    def info(self, name, revision="main"):
        repo = self.repo(name)
        commit = repo.find(revision)
        blobs = {path: {"size": blob.size, "blobId": blob.oid} for path, blob in commit.files.items()}
        siblings = [{"rfilename": path, **(blobs[path] if "blobs" in self.query else {})} for path in sorted(blobs)]
        times = {"createdAt": commit.history[-1].date, "lastModified": commit.date}
        counts = {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        names = {"_id": hashlib.sha1(name.encode()).hexdigest()[:24], "id": name, "modelId": name}
        return {**names, "author": name.split("/")[0], "sha": commit.oid, **times, **counts, "siblings": siblings}

    @route("GET", r"/api/models/REPO/tree/REVISION(?:/(?P<path>.+))?")
    def tree(self, name, revision, path):
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        return self.repo(name).entries(revision, path, recursive)

    @route("POST", r"/api/models/REPO/paths-info/REVISION")
    def paths_info(self, name, revision):
        wanted = urllib.parse.parse_qs(self.body.decode()).get("paths", [])
        return [entry for entry in self.repo(name).entries(revision) if entry["path"] in wanted]

    @route("GET", r"/api/models/REPO/commits/REVISION")
    def commits(self, name, revision):
        history = self.repo(name).find(revision).history
        who = [{"user": USER}]
        keys = ("title", "message", "date")
        return [{"id": c.oid, "authors": who} | {key: getattr(c, key) for key in keys} for c in history]

    @route("GET", r"/api/models/REPO/refs")
    def refs(self, name):
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit.oid}
            for branch, commit in self.repo(name).branches.items()
        ]
        return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}

    @route("GET", r"/REPO/resolve/REVISION/(?P<path>.+)")
    def resolve(self, name, revision, path):
        repo = self.repo(name)
        commit = repo.find(revision)
        if path not in commit.files:
            raise no_entry(path)
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        headers |= {"Content-Type": "application/octet-stream"}
        content, status = repo.content(blob), 200
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part:
            first, last = int(part[1]), min(int(part[2] or blob.size), blob.size - 1)
            if first > last:
                raise HubError(416, f"{path} ends before byte {first}")
            content, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        return Answer(content, status, headers)

    # ------------------------------------------------------------ writing

    @route("POST", r"/api/models/REPO/branch/(?P<branch>[^/]+)")
    def create_branch(self, name, branch):
        repo = self.repo_to_write(name)
        check_path(branch)
        if branch in repo.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = repo.find(self.json().get("startingPoint", "main"))
        return {}

    @route("POST", r"/api/models/REPO/preupload/REVISION")
    def preupload(self, name, revision):
        """How to send each file: in the commit itself ("regular"). The hash of what is there spares sending it."""
        files, answers = self.repo_to_write(name).find(revision).files, []
        for file in self.json().get("files", []):
            path = check_path(file["path"])
            check_size(path, file["size"])
            answers.append({"path": path, "uploadMode": "regular", "shouldIgnore": False})
            answers[-1] |= {"oid": files[path].oid} if path in files else {}
        return {"files": answers}

    @route("POST", r"/api/models/REPO/commit/REVISION")
    def commit(self, name, revision):
        """A new commit, from lines of JSON: a header, then an operation each. All of them are done, or none."""
        repo = self.repo_to_write(name)
        if "create_pr" in self.query:
            raise HubError(400, "This small server has no pull requests")
        if revision not in repo.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header, files = {}, dict(repo.branches[revision].files)
        for line in lines:
            if line["key"] == "header":
                header = line["value"]
            else:
                operate(repo, files, line["key"], line["value"])
        if header.get("parentCommit", repo.branches[revision].oid) != repo.branches[revision].oid:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        commit = repo.commit(revision, files, header.get("summary", ""), header.get("description", ""))
        url = f"{self.server.hub.url}/{name}/commit/{commit.oid}"
        return {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""}


def check_size(path, size):
    if size > LARGEST_FILE:
        message = f"{path} is {size / 1e6:.1f} MB; this small server takes files of up to {LARGEST_FILE / 1e6:.0f} MB"
        raise HubError(413, f"{message}. Save the model in smaller shards.")


def operate(repo, files, key, value):
    """Do one operation of a commit to {path: Blob}."""
    path = check_path(value["path"].rstrip("/") if key == "deletedFolder" else value["path"])
    if key == "file":
        try:
            content = base64.b64decode(value["content"], validate=True)
        except binascii.Error:
            raise HubError(400, f"The content of {path} is not base64") from None
        check_size(path, len(content))
        files[path] = repo.store(content)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [file for file in files if file == path or (key == "deletedFolder" and file.startswith(f"{path}/"))]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for file in gone:
            del files[file]
    else:
        raise HubError(400, f"This small server does not know the operation {key!r}")


# ---------------------------------------------------------------- for a lesson


class Session:
    """A Hub to push to: this machine's, or the real one. Made by `open_hub`.

    Args:
        repo_id: "user/name" of the repo to push to.
        hub: the Hub that runs here, or None for the real one.
    """

    current = None  # the one that is open in this process

    def __init__(self, repo_id, hub=None):
        self.repo_id, self.hub = repo_id, hub

    @property
    def where(self):
        return "a small Hub on this machine" if self.hub else "the Hugging Face Hub"

    def new_requests(self):
        """The (method, path) of each request since the last call; of the real Hub, nothing is known."""
        if self.hub is None:
            return []
        asked, self.hub.requests = self.hub.requests, []
        return asked

    def close(self):
        """Stop the server and forget what it kept. What was pushed to the real Hub stays there."""
        Session.current = None
        if self.hub:
            self.hub.stop()


def open_hub(repo_id=f"{USER}/code-model-4bit"):
    """Start a Hub on this machine and make this process take it for the real one.

    Call it before anything imports huggingface_hub or transformers, which read their settings once. Where the variable
    QLIB_HUB_REPO holds "user/name", nothing is started, and the lesson talks to the real Hub: HF_TOKEN must hold a
    token that may write to that repo. Under test (QLIB_STRICT=1) that variable is passed over.

    Args:
        repo_id: the repo on this machine's Hub.

    Returns:
        a Session; the one that is open already, if there is one.

    Raises:
        RuntimeError: huggingface_hub has been imported and would talk to another Hub, or HF_TOKEN is missing.
    """
    if Session.current is None:
        real = os.environ.get("QLIB_HUB_REPO") if os.environ.get("QLIB_STRICT") != "1" else None
        if real and not os.environ.get("HF_TOKEN"):
            raise RuntimeError(
                "QLIB_HUB_REPO names a repo of the real Hub; set HF_TOKEN to a token that may write to it"
            )
        Session.current = Session(real) if real else Session(repo_id, start_here())
    return Session.current


def start_here():
    """A running Hub that this process takes for the real one."""
    # What is imported keeps its settings, so a Hub that is opened again goes where the last one was.
    before = re.fullmatch(r"http://127\.0\.0\.1:(\d+)", os.environ.get("HF_ENDPOINT", ""))
    if "huggingface_hub" in sys.modules and not before:
        raise RuntimeError("open_hub() comes too late: huggingface_hub is imported already. Restart the kernel")
    hub = Hub(TOKEN, int(before[1]) if before else 0).start()
    # A client that outlives this Hub makes its cache anew, and a kernel may be shut down without `close`.
    atexit.register(shutil.rmtree, hub.folder, ignore_errors=True)
    os.environ.update(hub.environment)
    return hub
