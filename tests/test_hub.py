"""The small Hub answers the real client as the Hub does: files there and back, commits, tokens, and what is missing."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import huggingface_hub
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from course.hub import LARGEST_FILE, LARGEST_REQUEST, SmallHub, open_hub
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
    with contextlib.closing(SmallHub()) as hub:
        yield hub


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.server.url, token=False)
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
    request = urllib.request.Request(hub.server.url + path, body, headers, method=method)
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(urllib.request.urlopen(request))
        except urllib.error.HTTPError as error:
            answer = stack.enter_context(error)
        return answer.status, answer.read()


# ---------------------------------------------------------------- repos


def test_a_repo_is_made_once(api, hub):
    url = api.create_repo("learner/another")
    assert url == f"{hub.server.url}/learner/another"
    assert url.repo_id == "learner/another"
    with pytest.raises(HfHubHTTPError, match="You already created this model repo"):
        api.create_repo("learner/another")
    assert api.create_repo("learner/another", exist_ok=True) == url


def test_a_new_repo_holds_what_the_hub_puts_into_it(api):
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["initial commit"]


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
    found = snapshot_download(REPO, endpoint=hub.server.url, token=False)
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
        with open(hf_hub_download(REPO, path, endpoint=hub.server.url, token=False), "rb") as file:
            assert file.read() == content


# ---------------------------------------------------------------- the cache


def asked_for(hub, path):
    """How the file was asked for since the last look."""
    return [method for method, asked in hub.new_requests() if asked.endswith(path)]


def test_a_file_that_is_cached_is_asked_about_and_not_sent_again(api, hub, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    first = hf_hub_download(REPO, "weights.bin", endpoint=hub.server.url, token=False)
    assert asked_for(hub, "/weights.bin") == ["HEAD", "GET"]
    assert hf_hub_download(REPO, "weights.bin", endpoint=hub.server.url, token=False) == first
    assert asked_for(hub, "/weights.bin") == ["HEAD"]


def test_a_file_that_changed_is_fetched_anew_and_the_old_one_stays(api, hub, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    old = hf_hub_download(REPO, "config.json", endpoint=hub.server.url, token=False)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"{}", path_in_repo="config.json")
    new = hf_hub_download(REPO, "config.json", endpoint=hub.server.url, token=False)
    with open(old, "rb") as before, open(new, "rb") as after:
        assert (before.read(), after.read()) == (b'{"model_type": "llama"}', b"{}")


def test_a_file_that_has_not_changed_is_not_sent_again(api, hub, folder):
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.new_requests()
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert not [path for method, path in hub.new_requests() if "/commit/" in path]


# ---------------------------------------------------------------- commits and branches


def test_each_commit_can_be_had_by_its_hash(api, hub):
    commits = [
        api.upload_file(repo_id=REPO, path_or_fileobj=text, path_in_repo="a.txt", commit_message=text.decode())
        for text in (b"one", b"two", b"three")
    ]
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["three", "two", "one", "initial commit"]
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)][:3] == [commit.oid for commit in commits][::-1]
    for revision, text in [(commits[0].oid, "one"), (commits[1].oid, "two"), ("main", "three"), (None, "three")]:
        with open(hf_hub_download(REPO, "a.txt", revision=revision, endpoint=hub.server.url, token=False)) as file:
            assert file.read() == text
        assert api.model_info(REPO, revision=revision).sha == (
            commits[2].oid if revision in ("main", None) else revision
        )
    assert snapshot_download(REPO, revision=commits[0].oid, endpoint=hub.server.url, token=False).endswith(
        commits[0].oid
    )


# ---------------------------------------------------------------- what is missing, as the Hub says it


def test_a_missing_repo(api, hub):
    for ask in (
        lambda: api.model_info("learner/missing"),
        lambda: api.list_repo_files("learner/missing"),
        lambda: hf_hub_download("learner/missing", "config.json", endpoint=hub.server.url, token=False),
        lambda: hf_hub_download("missing", "config.json", endpoint=hub.server.url, token=False),
        lambda: snapshot_download("learner/missing", endpoint=hub.server.url, token=False),
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
        lambda: hf_hub_download(REPO, ".gitattributes", revision="missing", endpoint=hub.server.url, token=False),
        lambda: snapshot_download(REPO, revision="missing", endpoint=hub.server.url, token=False),
        lambda: api.upload_file(repo_id=REPO, path_or_fileobj=b"a", path_in_repo="a", revision="missing"),
    ):
        with pytest.raises(RevisionNotFoundError) as raised:
            ask()
        assert raised.value.response.status_code == 404
    assert not api.revision_exists(REPO, "missing") and api.revision_exists(REPO, "main")


def test_a_missing_file(api, hub):
    for ask in (
        lambda: hf_hub_download(REPO, "missing.safetensors", endpoint=hub.server.url, token=False),
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


# ---------------------------------------------------------------- what it will not take


def commit_of(*operations):
    header = {"key": "header", "value": {"summary": "by hand"}}
    return b"".join(json.dumps(line).encode() + b"\n" for line in [header, *operations])


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
    assert not any("/commit/" in path for _, path in hub.new_requests())


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ({"key": "lfsFile", "value": {"path": "a", "oid": "0" * 64}}, b"does not know the operation 'lfsFile'"),
        ({"key": "file", "value": {"path": "a", "content": "not base64!"}}, b"makes no sense"),
        ({"key": "file"}, b"makes no sense"),
    ],
)
def test_an_operation_that_it_cannot_do_is_refused_and_nothing_is_committed(api, hub, operation, words):
    status, answer = raw(hub, "POST", f"/api/models/{REPO}/commit/main", commit_of(operation))
    assert status == 400 and words in answer
    assert len(api.list_repo_commits(REPO)) == 1


def test_a_branch_is_refused_with_a_word(api):
    first = api.model_info(REPO).sha
    api.upload_file(repo_id=REPO, path_or_fileobj=b"a", path_in_repo="a")
    with pytest.raises(HfHubHTTPError, match=r"does not know POST .*branch/mine"):
        api.create_branch(REPO, branch="mine")
    with pytest.raises(HfHubHTTPError, match="no branches"):
        api.upload_file(repo_id=REPO, path_or_fileobj=b"b", path_in_repo="a", revision=first)


@pytest.mark.parametrize("size", [str(LARGEST_REQUEST + 1), "9" * 30, "-1", "many"])
def test_a_request_that_is_too_large_is_refused_unread(hub, size):
    with socket.create_connection(hub.server.server_address) as client:
        client.sendall(f"POST /api/repos/create HTTP/1.0\r\nContent-Length: {size}\r\n\r\n".encode())
        assert b" 413 " in client.recv(100)


def test_it_listens_on_this_machine_alone(hub):
    assert hub.server.server_address[0] == "127.0.0.1"


def test_a_pull_request_is_refused_with_a_word(api):
    with pytest.raises(HfHubHTTPError, match="no pull requests"):
        api.upload_file(repo_id=REPO, path_or_fileobj=b"a", path_in_repo="a", create_pr=True)


def test_a_stopped_hub_answers_nobody_and_leaves_nothing_behind(folder):
    with contextlib.closing(SmallHub()) as hub:
        api = HfApi(endpoint=hub.server.url, token=False)
        api.create_repo(REPO)
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert not os.path.exists(hub.cache)
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


def test_transformers_pushes_and_pulls_a_model_by_its_name(hub):
    said = python(TRANSFORMERS, **hub.environment).splitlines()
    assert "learner/missing is not a local folder and is not a valid model identifier" in said[0]
    assert "missing is not a valid git identifier" in said[1]
    files = HfApi(endpoint=hub.server.url, token=False).list_repo_files("learner/llama")
    assert {"README.md", "config.json", "model.safetensors"} <= set(files)


LESSON = """
from course.hub import open_hub
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
    hub = open_hub()
    assert (hub.repo_id, hub.where, hub.new_requests()) == ("someone/model", "the Hugging Face Hub", [])
    assert open_hub() is hub and "HF_ENDPOINT" not in os.environ
    hub.close()


def test_a_hub_that_is_opened_too_late_says_so(monkeypatch):
    monkeypatch.delenv("QLIB_HUB_REPO", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(RuntimeError, match="Restart the kernel"):
        open_hub()
