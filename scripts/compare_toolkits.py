"""Quantizes one net to int8 with each toolkit and writes what comes of it to data/toolkits.json, for lesson 18.

    sh bench/install.sh && bench/.venv/bin/python scripts/compare_toolkits.py

The net is the convolutional one of lesson 9. Every toolkit gets its weights, the same 320 training pictures to
calibrate on, and its own defaults otherwise; then it reads the 360 held-out pictures. A toolkit that is missing or
fails is an entry with the reason. No time is measured. Takes about half a minute.
"""

import contextlib
import copy
import datetime
import importlib.metadata
import io
import json
import logging
import pathlib
import platform
import sys
import tempfile
import warnings

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # the bench's environment has no qlib of its own

from course.models import DATA, load_digits, load_digits_conv
from qlib import Scheme, save_tensors
from qlib.methods.static import fuse_batch_norms, integer_net
from qlib.observers import MinMax, calibrate
from qlib.report import sqnr

BATCH = 32


def float32(net, batches, pictures, folder):
    """Nothing is quantized."""
    return net(pictures), DATA / "digits_conv" / "net.safetensors"


def qlib(net, batches, pictures, folder):
    """Lesson 9's: batch norms folded, a scale a row, min-max observers."""
    fused = fuse_batch_norms(net)
    with calibrate(fused, MinMax) as observers:
        for batch in batches:
            fused(batch)
    integers = integer_net(fused, Scheme(bits=8), observers)
    save_tensors(dict(integers.state_dict()), folder / "net.safetensors")
    return integers(pictures), folder / "net.safetensors"


def pytorch(net, batches, pictures, folder):
    """torch.ao.quantization, eager mode: fuse, prepare, calibrate, convert."""
    from torch.ao import quantization

    torch.backends.quantized.engine = "fbgemm"
    model = quantization.QuantWrapper(copy.deepcopy(net))
    names = [[f"module.{part}{n}" for part in ("conv", "bn", "relu")] for n in (1, 2)]
    model = quantization.fuse_modules(model, names)
    model.qconfig = quantization.get_default_qconfig("fbgemm")
    quantization.prepare(model, inplace=True)
    for batch in batches:
        model(batch)
    quantization.convert(model, inplace=True)
    torch.save(model.state_dict(), folder / "net.pt")
    return model(pictures), folder / "net.pt"


def torchao(net, batches, pictures, folder):
    """torchao's pt2e: torch.export, the x86 quantizer's observers, calibrate, convert."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = torch.export.Dim("batch", min=2, max=1024)
    exported = torch.export.export(net, (batches[0],), dynamic_shapes=({0: batch},)).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for pictures_of_one_batch in batches:
        prepared(pictures_of_one_batch)
    converted = convert_pt2e(prepared)
    sample = batches[0][:2].clone()  # it goes into the file, and a view would take the whole storage along
    program = torch.export.export(converted, (sample,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "net.pt2")
    return converted(pictures), folder / "net.pt2"


def to_onnx(net, folder):
    """The float net as an ONNX file, which takes pictures of shape (n, 1, 8, 8)."""
    path = folder / "float.onnx"
    names = {"input_names": ["pictures"], "output_names": ["scores"], "dynamic_axes": {"pictures": {0: "batch"}}}
    torch.onnx.export(net[1:], (torch.zeros(1, 1, 8, 8),), path, dynamo=False, **names)
    return path


def as_channels(pictures):
    """(n, 8, 8) as a NumPy array of shape (n, 1, 8, 8)."""
    return pictures.unsqueeze(1).numpy()


def onnx_runtime(net, batches, pictures, folder):
    """ONNX Runtime's quantize_static: QDQ, a scale a channel for the weights, min-max."""
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(batches)

        def get_next(self):
            batch = next(self.left, None)
            return None if batch is None else {"pictures": as_channels(batch)}

    ready, path = folder / "ready.onnx", folder / "net.onnx"
    shape_inference.quant_pre_process(to_onnx(net, folder), ready)
    quantization.quantize_static(ready, path, Reader(), per_channel=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"pictures": as_channels(pictures)})
    return torch.from_numpy(scores), path


def openvino(net, batches, pictures, folder, **options):
    """OpenVINO with NNCF's post-training quantization and all its defaults."""
    import nncf
    import openvino

    model = openvino.convert_model(to_onnx(net, folder))
    data = nncf.Dataset([as_channels(batch) for batch in batches])
    quantized = nncf.quantize(model, data, subset_size=len(batches), **options)
    openvino.save_model(quantized, folder / "net.xml")
    scores = openvino.compile_model(quantized, "CPU")(as_channels(pictures))[0]
    return torch.from_numpy(scores), [folder / "net.xml", folder / "net.bin"]


def openvino_exact(net, batches, pictures, folder):
    """The same, but biases are corrected by what each layer gives, and not by a quick estimate."""
    return openvino(net, batches, pictures, folder, fast_bias_correction=False)


# name: (what quantizes, the packages whose versions count, what it leaves on disk)
TOOLKITS = {
    "float32": (float32, ["torch"], "safetensors"),
    "qlib": (qlib, [], "safetensors"),
    "PyTorch": (pytorch, ["torch"], "a pickled state dict"),
    "torchao": (torchao, ["torchao"], "an exported program"),
    "ONNX Runtime": (onnx_runtime, ["onnxruntime", "onnx"], "one ONNX file"),
    "OpenVINO": (openvino, ["openvino", "nncf"], "XML and a file of weights"),
    "OpenVINO, exact bias correction": (openvino_exact, ["openvino", "nncf"], "XML and a file of weights"),
}


def measure(toolkit, net, batches, pictures, labels, reference):
    """One toolkit's entry: right answers, answers that are float32's, decibels, bytes of its files, or the reason."""
    quantize, packages, leaves = TOOLKITS[toolkit]
    entry = {"toolkit": toolkit, "versions": {}, "how": quantize.__doc__.rstrip("."), "leaves": leaves}
    try:
        entry["versions"] = {name: importlib.metadata.version(name) for name in packages}
        with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
            scores, paths = quantize(net, batches, pictures, pathlib.Path(folder))
            files = paths if isinstance(paths, list) else [paths]
            entry["bytes"] = sum(path.stat().st_size for path in files)
    except Exception as error:  # any: a peer that breaks costs its own line alone
        return entry | {"failed": f"{type(error).__name__}: {error!s}".splitlines()[0]}
    answers = scores.argmax(-1)
    entry["right"] = (answers == labels).sum().item()
    entry["same_answer"] = (answers == reference.argmax(-1)).sum().item()
    entry["sqnr"] = round(sqnr(reference, scores), 1) if toolkit != "float32" else None
    return entry


@contextlib.contextmanager
def quiet():
    """Keep what a toolkit prints off the page."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def main():
    torch.set_num_threads(1)
    (training, _), (pictures, labels) = load_digits()
    net, batches = load_digits_conv(), training[:320].split(BATCH)
    with torch.no_grad():
        reference = net(pictures)
    entries = [measure(toolkit, net, batches, pictures, labels, reference) for toolkit in TOOLKITS]
    found = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "net": "data/digits_conv/net.safetensors",
        "calibration": "320 training pictures in batches of 32",
        "pictures": len(labels),
        "toolkits": entries,
    }
    (DATA / "toolkits.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for entry in entries:
        print(entry)


if __name__ == "__main__":
    main()
