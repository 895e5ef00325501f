"""The names that the video course "Quantization in Depth" uses, as thin aliases of qlib's own functions.

A cell of its notebooks that imports from `helper` runs with `import course.helper as helper`. Where the course's
formula is wrong, the name here does what is right: lessons 4, 5 and 10 show the cases.
"""

import torch

from course.figures.lesson_12 import boxes_on_pictures
from qlib import affine, linear, model, packing, report
from qlib.methods import static
from qlib.plot import heatmaps
from qlib.scheme import INT8, Scheme


def bits_of(dtype):
    """Bits of a signed integer dtype that the course quantizes to; ValueError for any but torch.int8."""
    if dtype is not torch.int8:
        raise ValueError(f"the course quantizes to torch.int8, not {dtype}; use a Scheme for other widths")
    return 8


def linear_q_with_scale_and_zero_point(tensor, scale, zero_point, dtype=torch.int8):
    """qlib.quantize (lesson 3)."""
    return affine.quantize(tensor, scale, zero_point, bits_of(dtype))


def linear_dequantization(quantized_tensor, scale, zero_point):
    """qlib.dequantize (lesson 3)."""
    return affine.dequantize(quantized_tensor, scale, zero_point)


def get_q_scale_and_zero_point(tensor, dtype=torch.int8):
    """qlib.choose_qparams in asymmetric mode (lesson 4), as the course returns it: a float and an int."""
    scale, zero_point = affine.choose_qparams(tensor, Scheme(bits_of(dtype), symmetric=False, axis=None))
    return scale.item(), zero_point.item()


def linear_quantization(tensor, dtype=torch.int8):
    """The whole asymmetric quantizer (lesson 4): (quantized tensor, scale, zero point)."""
    scale, zero_point = get_q_scale_and_zero_point(tensor, dtype)
    return linear_q_with_scale_and_zero_point(tensor, scale, zero_point, dtype), scale, zero_point


def get_q_scale_symmetric(tensor, dtype=torch.int8):
    """qlib.choose_qparams in symmetric mode (lesson 5), as the course returns it: a float."""
    scale, _ = affine.choose_qparams(tensor, Scheme(bits_of(dtype), axis=None))
    return scale.item()


def linear_q_symmetric(tensor, dtype=torch.int8):
    """The whole symmetric quantizer (lesson 5): (quantized tensor, scale). The scale is one for `dtype`."""
    scale = get_q_scale_symmetric(tensor, dtype)
    return linear_q_with_scale_and_zero_point(tensor, scale, 0, dtype), scale


def linear_q_symmetric_per_channel(r_tensor, dim, dtype=torch.int8):
    """The symmetric quantizer with a scale per row (dim 0) or per column (dim 1): (quantized, scale) (lesson 7)."""
    scale, zero_point = affine.choose_qparams(r_tensor, Scheme(bits_of(dtype), axis=dim))
    return linear_q_with_scale_and_zero_point(r_tensor, scale, zero_point, dtype), scale


def linear_q_symmetric_per_group(tensor, group_size, dtype=torch.int8):
    """qlib.quantize per group in symmetric mode (lesson 8): (quantized tensor, scale).

    The scale has the course's shape, (rows * groups, 1): a group a row, those of the first row first. The course asks
    for columns that make whole groups; here the last group of a row may be shorter.
    """
    scheme = Scheme(bits_of(dtype), group_size=group_size)
    scale, zero_point = affine.choose_qparams(tensor, scheme)
    columns_scale = affine.expand_groups(scale, tensor, group_size)
    return affine.quantize(tensor, columns_scale, zero_point, scheme.bits), scale.reshape(-1, 1)


def linear_dequantization_per_group(quantized_tensor, scale, group_size):
    """qlib.dequantize per group (lesson 8), with a scale of shape (rows * groups, 1)."""
    scale = scale.reshape(*quantized_tensor.shape[:-1], -1)
    return affine.dequantize(quantized_tensor, affine.expand_groups(scale, quantized_tensor, group_size), 0)


def quantized_linear_W8A32_without_bias(input, q_w, s_w, z_w):
    """methods.static.linear_w8a32 (lesson 9). The weight is s_w * (q_w - z_w); the course writes q_w * s_w + z_w."""
    return static.linear_w8a32(input, q_w, s_w, z_w)


def w8_a16_forward(weight, input, scales, bias=None):
    """A linear layer on int8 weights, each row with its scale, in the input's own dtype (lesson 10).

    The sums are made of the bare integers, and a row's scale multiplies its finished sum. In float16 a sum beyond 65504
    becomes infinite before the scale can bring it down; qlib.QLinear scales the weights first, and has no such limit.

    Args:
        weight: int8, (outputs, inputs).
        input: (..., inputs), of a floating dtype.
        scales: float32, (outputs,).
        bias: (outputs,), or None.

    Returns:
        (..., outputs), of the dtype of `input`.
    """
    sums = torch.nn.functional.linear(input, weight.to(input.dtype))
    output = sums * scales  # float32 scales make float32 of 16-bit sums
    if bias is not None:
        output = output + bias
    return output.to(input.dtype)


class W8A16LinearLayer(torch.nn.Module):
    """A linear layer that holds its weight as int8, with a float32 scale for each output (lesson 10).

    It is the first step to qlib.QLinear, which takes any Scheme and keeps its scales float32 under `.half()`.

    Args:
        in_features, out_features, bias: as for torch.nn.Linear.
        dtype: of the bias. The course makes its scales of that dtype too; here they are float32 always.
    """

    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__()
        self.register_buffer("int8_weights", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(out_features, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype) if bias else None)

    def quantize(self, weights):
        """Take over a weight of any floating dtype, (out_features, in_features)."""
        weights = weights.detach()  # a scale with a gradient would keep the whole weight alive
        row_scales, zero_point = affine.choose_qparams(weights, INT8)
        self.int8_weights = affine.quantize(weights, row_scales, zero_point)
        self.scales = row_scales.squeeze(1)

    def forward(self, input):
        """(..., in_features) -> (..., out_features), of the dtype of `input`."""
        return w8_a16_forward(self.int8_weights, input, self.scales, self.bias)


def replace_linear_with_target(module, target_class, module_name_to_exclude):
    """Put an empty `target_class` layer in the place of every nn.Linear inside `module`, in place (lesson 11).

    Structure only. A new layer has the mode and the device of the one that it replaces. A tied head is untied, and a
    layer that stands in two places becomes two: qlib.replace_linear and qlib.quantize_model look after both.

    Args:
        module: a torch.nn.Module; its layers may be on the meta device.
        target_class: called with in_features, out_features, whether there is a bias, and the weight's dtype.
        module_name_to_exclude: list of names; a Linear that its parent calls so is left.
    """
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear) and name not in module_name_to_exclude:
            with child.weight.device:
                layer = target_class(child.in_features, child.out_features, child.bias is not None, child.weight.dtype)
            setattr(module, name, layer.train(child.training))
        else:
            replace_linear_with_target(child, target_class, module_name_to_exclude)


def replace_linear_with_target_and_quantize(module, target_class, module_name_to_exclude):
    """Replace each linear layer by a `target_class` layer that quantizes its weight and takes its bias (lesson 11).

    Layers that share their weight with another module are left, and a layer that stands in two places stays one.
    """
    places = model.places_of(module)
    for name in model.layers_to_quantize(module, lambda name, _: name.rpartition(".")[2] in module_name_to_exclude):
        old = module.get_submodule(name)
        weight = linear.weight_of(old, name).detach()
        with weight.device:
            layer = target_class(weight.shape[1], weight.shape[0], old.bias is not None, weight.dtype)
        layer.quantize(weight)
        if old.bias is not None:
            layer.bias = old.bias.detach().clone()
        for place in places[name]:
            model.set_submodule(module, place, layer.train(old.training))


def pack_weights(uint8tensor, bits):
    """qlib.pack (lesson 15). Of any length and width; the course asks for rows and widths that fill whole bytes."""
    return packing.pack(uint8tensor, bits)


def unpack_weights(uint8tensor, bits):
    """qlib.unpack (lesson 16): as many values as the bytes hold whole."""
    return packing.unpack(uint8tensor, bits)


def quantization_error(tensor, dequantized_tensor):
    """qlib.report.quantization_error: the mean squared error, as a tensor like the course's."""
    return torch.tensor(report.quantization_error(tensor, dequantized_tensor))


def plot_quantization_errors(original_tensor, quantized_tensor, dequantized_tensor, dtype=torch.int8, n_bits=8):
    """qlib.plot.heatmaps; shown at once. `dtype` and `n_bits` are taken for its calls' sake."""
    from IPython.display import display

    display(heatmaps(original_tensor, quantized_tensor, dequantized_tensor))


def plot_results(model, pil_img, results):
    """The boxes that a detector's processor found on one picture, as lesson 12 draws them; shown at once.

    Args:
        model: a detector of transformers, whose config names the labels.
        pil_img: the picture, as Pillow has it.
        results: {"scores", "labels", "boxes"}, tensors as `post_process_object_detection` gives them for one picture.
    """
    from IPython.display import display

    from course.models import Boxes

    picture = torch.tensor(list(pil_img.convert("RGB").tobytes()), dtype=torch.uint8)
    picture = picture.view(1, pil_img.height, pil_img.width, 3).permute(0, 3, 1, 2)
    found = Boxes(results["boxes"], results["labels"], results["scores"])
    display(boxes_on_pictures(picture, {"found": [found]}, model.config.id2label))
