"""Every model of the matrix: its name, its backbone, how it is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from onnxruntime.quantization import QuantFormat

import exports
import refused
import rewrites
import variants
from backbones import BACKBONES

EXPORTERS = {"ts": "torchscript", "dy": "dynamo"}


@dataclass
class Workshop:
    """Where models are written, and the Python that has Optimum."""

    root: Path
    scratch: Path
    optimum: str


@dataclass
class Model:
    name: str
    backbone: str
    write: Callable  # (workshop, folder)
    after: str = ""  # the model that this one is made from
    arithmetic: str = "f32"  # f32 | f16 | bf16 | quantised
    refused: str = ""  # what the refusal must name
    float_source: str = ""  # of a quantised model: the export that it came from
    # A tied head's scale went into the final norm's weight: in this graph the head has none, and so has the ladder's.
    folded_scale: bool = False

    @property
    def expected(self):
        """The expectation's name."""
        if self.arithmetic == "quantised":
            return self.name
        return f"{self.backbone}_folded_scale" if self.folded_scale else self.backbone


def exported(name, backbone, form, *, arithmetic="f32", write=None, refused="", **options):
    """An export as it comes. `form`: ts | dy | 2f; `by` says with which exporter the two files are written."""
    by = options.pop("by", "ts" if form == "2f" else form)
    write = write or (exports.two_files if form == "2f" else exports.single)

    def run(_workshop, folder):
        write(folder, BACKBONES[backbone], exporter=EXPORTERS[by], **options)

    return Model(name, backbone, run, arithmetic=arithmetic, refused=refused)


def base_cases():
    """{ts, dy, 2f} x {relu, gated} x {tied, untied} x {f32, f16} x {equal, unequal}."""
    for form in ("ts", "dy", "2f"):
        for number, backbone in enumerate(list(BACKBONES)[:8]):
            for half, precision in enumerate(("f32", "f16")):
                options = {}
                if form == "2f":
                    odd = (number + number // 2 + number // 4 + half) % 2  # each exporter sees each axis
                    options = {"by": ("ts", "dy")[odd], "cache": (number // 2) % 2 == 0}
                kind, head, size = backbone.split("_")
                yield exported(f"{form}_{kind}_{head}_{precision}_{size}", backbone, form, arithmetic=precision,
                               precision=precision, **options)


def own_backbones():
    for name in ("umt5", "byt5", "mt5", "unscaled", "gelu_erf", "gelu_tanh", "gelu_new", "silu", "buckets_16_20",
                 "buckets_64_256", "one_head", "five_heads", "padded_vocab", "wide", "four_heads"):
        yield exported(f"ts_{name}", name, "ts")
        yield exported(f"dy_{name}", name, "dy")
    yield exported("2f_umt5", "umt5", "2f")
    yield exported("2f_mt5", "mt5", "2f", by="dy")
    yield exported("2f_padded_vocab", "padded_vocab", "2f")
    yield exported("ts_gelu_erf_opset_20", "gelu_erf", "ts", opset=20)
    yield exported("ts_gelu_tanh_opset_20", "gelu_tanh", "ts", opset=20)
    yield exported("dy_gelu_erf_opset_20", "gelu_erf", "dy", opset=20)
    yield exported("dy_gelu_tanh_opset_20", "gelu_tanh", "dy", opset=20)


def opset_11(name, backbone, form):
    """Opset 11, with the one repair that the exporter's T5 needs to be sound there."""
    source = exported(name, backbone, form, opset=11)

    def run(workshop, folder):
        source.write(workshop, folder)
        for path in sorted(folder.glob("*.onnx")):
            rewrites.integer_minimum_in_float(path, path)

    return Model(name, backbone, run)


def opsets():
    for opset in (12, 13, 14, 18, 20):
        yield exported(f"ts_opset_{opset}", "gated_tied_equal", "ts", opset=opset)
    for opset in (20, 21, 23):
        yield exported(f"dy_opset_{opset}", "gated_tied_equal", "dy", opset=opset)
    for form, backbone in (("ts", "gated_tied_equal"), ("2f", "relu_tied_equal")):
        yield opset_11(f"{form}_opset_11", backbone, form)
    yield exported("2f_opset_23", "relu_tied_equal", "2f", by="dy", opset=23)
    for form in ("ts", "dy"):
        yield exported(f"{form}_bf16", "gated_tied_unequal", form, arithmetic="bf16", precision="bf16")
    for form in ("ts", "dy", "2f"):
        yield exported(f"{form}_static", "relu_untied_unequal", form, static=True)
    for form in ("ts", "dy"):
        yield exported(f"{form}_unfolded", "gated_untied_equal", form, folded=False)


def sdpa():
    backbone = "sdpa"
    yield exported("ts_sdpa", backbone, "ts")
    yield exported("dy_sdpa", backbone, "dy")
    yield exported("2f_sdpa", backbone, "2f")
    yield exported("dy_sdpa_opset_23", backbone, "dy", opset=23)


def static_sdpa():
    """Position bias and masks in one constant, `[1, heads, queries, keys]` or one for each example."""
    basic = variants.ort_optimised(variants.BASIC)
    backbone = "static_sdpa"
    yield exported("ts_static_sdpa", backbone, "ts", static=True)
    yield exported("dy_static_sdpa", backbone, "dy", static=True)
    yield exported("2f_static_sdpa", backbone, "2f", by="dy", static=True)
    yield exported("dy_static_sdpa_opset_23", backbone, "dy", static=True, opset=23)
    yield exported("dy_static_sdpa_f16", backbone, "dy", static=True, arithmetic="f16", precision="f16")
    yield derived("ts_static_sdpa_basic", "ts_static_sdpa", backbone, basic)
    yield derived("dy_static_sdpa_basic", "dy_static_sdpa", backbone, basic)
    yield derived("ts_static_sdpa_onnxsim", "ts_static_sdpa", backbone, variants.simplified)
    backbone = "static_sdpa_full"
    write = exports.with_fixed_masks
    yield exported("ts_fixed_masks", backbone, "ts", write=write)
    yield exported("dy_fixed_masks", backbone, "dy", write=write)
    yield derived("ts_fixed_masks_basic", "ts_fixed_masks", backbone, basic)
    yield exported("refused_fixed_padding", "static_sdpa", "dy", write=write,
                   refused="differs between the examples of the batch, as")
    yield exported("refused_static_target_sees_all", "static_sdpa", "dy", write=exports.without_causal_mask,
                   refused="lets a position of the target see later")


def layouts():
    def with_mask(_workshop, folder):
        exports.with_decoder_mask(folder, BACKBONES["relu_tied_equal"])

    yield Model("ts_decoder_mask", "relu_tied_equal", with_mask)
    yield exported("2f_past_outputs", "relu_tied_unequal", "2f", cache=True, pattern="past_{block}_{tower}_{kind}")
    yield exported("2f_present_outputs", "gated_untied_unequal", "2f", by="dy", cache=True)

    def by_optimum(backbone):
        def run(workshop, folder):
            exports.optimum(folder, BACKBONES[backbone], workshop.optimum, workshop.scratch / folder.name)
        return run

    for backbone in ("gated_untied_equal", "relu_tied_unequal"):
        yield Model(f"optimum_{backbone}", backbone, by_optimum(backbone))

    def merged_alone(source):
        def run(workshop, folder):
            for name in ("encoder_model.onnx", "decoder_model_merged.onnx", "config.json"):
                (folder / name).write_bytes((workshop.root / source / name).read_bytes())
        return run

    for name, backbone in (("optimum_merged", "gated_untied_equal"), ("optimum_merged_tied", "relu_tied_unequal")):
        source = f"optimum_{backbone}"
        yield Model(name, backbone, merged_alone(source), after=source)


def derived(name, source, backbone, step, arithmetic="f32", export=""):
    """What a tool makes of each ONNX file of another model. `export`: the export behind that, where it is no export."""
    def run(workshop, folder):
        for path in sorted((workshop.root / source).iterdir()):
            if path.suffix == ".onnx":
                if path.name not in ("decoder_with_past_model.onnx", "decoder_model_merged.onnx"):
                    step(path, folder / path.name)
            elif path.name == "config.json":
                (folder / path.name).write_bytes(path.read_bytes())
    return Model(name, backbone, run, after=source, arithmetic=arithmetic, float_source=export or source)


def processed():
    """The f32 exports through the tools that people use on them."""
    forms = {
        "ts": ("ts_gated_tied_f32_equal", "gated_tied_equal"), "dy": ("dy_gated_tied_f32_equal", "gated_tied_equal"),
        "2f": ("2f_relu_untied_f32_equal", "relu_untied_equal"),
    }
    full = {"basic": variants.ort_optimised(variants.BASIC), "extended": variants.ort_optimised(variants.EXTENDED),
            "onnxsim": variants.simplified}
    for tool, step in full.items():
        for form in ("ts", "dy", "2f"):
            for kind in ("relu", "gated"):
                for head in ("tied", "untied"):
                    for size in ("equal", "unequal"):
                        model = derived(f"{form}_{kind}_{head}_{size}_{tool}", f"{form}_{kind}_{head}_f32_{size}",
                                        f"{kind}_{head}_{size}", step)
                        model.folded_scale = tool == "onnxsim" and head == "tied"
                        yield model
    for form in ("ts", "dy", "2f"):
        source, backbone = forms[form]
        vocab, hidden = BACKBONES[backbone].vocab, BACKBONES[backbone].d_model
        quantised = {
            "dynamic_qint8": variants.dynamic("qint8", False, False),
            "dynamic_qint8_channel": variants.dynamic("qint8", True, True),
            "dynamic_quint8_gather": variants.dynamic("quint8", False, True),
            "dynamic_quint8_channel": variants.dynamic("quint8", True, False),
            "qdq": variants.static("qdq", False, vocab, hidden),
            "qdq_channel": variants.static("qdq", True, vocab, hidden),
            "qoperator": variants.static("qoperator", False, vocab, hidden),
            "nbits_4_block_16": variants.nbits(4, 16, True),
            "nbits_4_block_32_zero": variants.nbits(4, 32, False),
            "nbits_4_accuracy_4": variants.nbits(4, 32, True, accuracy=4),
            "nbits_8": variants.nbits(8, 32, True),
            "nbits_8_zero": variants.nbits(8, 16, False),
            "dynamic_extended": variants.then(variants.dynamic("qint8", False, False),
                                              variants.ort_optimised(variants.EXTENDED)),
            "qdq_extended": variants.then(variants.static("qdq", False, vocab, hidden),
                                          variants.ort_optimised(variants.EXTENDED)),
        }
        for tool, step in quantised.items():
            model = derived(f"{form}_{tool}", source, backbone, step, "quantised")
            if form == "2f" and tool == "qdq_extended":
                # ONNX Runtime drops a Relu before a quantisation whose zero point is the lowest integer.
                model.refused = "an activation that lstc does not"
            yield model
        # The quantiser lifts the opset to 21 and leaves the nodes as they are: opset 17's ReduceMean would be unsound.
        model = derived(f"{form}_nbits_4_qdq", "ts_opset_18" if form == "ts" else source, backbone,
                        variants.nbits(4, 32, True, form=QuantFormat.QDQ), "quantised")
        model.refused = "element type INT4, which lstc does not"
        yield model
        yield derived(f"{form}_f16_converted", source, backbone, variants.half_by_converter, "f16")
        yield derived(f"{form}_f16_ort", source, backbone, variants.half_by_ort, "f16")
        yield derived(f"{form}_external", source, backbone, variants.external(True))
        yield derived(f"{form}_external_files", source, backbone, variants.external(False))
        yield derived(f"{form}_extended_dynamic", f"{form}_{'relu_untied' if form == '2f' else 'gated_tied'}_equal_extended",
                      backbone, variants.dynamic("qint8", False, False), "quantised", export=source)
    for form in ("ts", "dy"):
        yield derived(f"{form}_transformers_optimised", f"{form}_four_heads", "four_heads",
                      variants.transformers_optimised(4, 32))
    yield derived("optimum_basic", "optimum_relu_tied_unequal", "relu_tied_unequal", full["basic"])
    yield derived("optimum_extended", "optimum_relu_tied_unequal", "relu_tied_unequal", full["extended"])
    yield derived("optimum_dynamic", "optimum_relu_tied_unequal", "relu_tied_unequal",
                  variants.dynamic("qint8", True, False), "quantised")
    yield derived("ts_initialisers_as_inputs", "ts_opset_11", "gated_tied_equal", variants.initialisers_as_inputs)
    yield derived("ts_f16_extended", "ts_gated_tied_f16_equal", "gated_tied_equal", full["extended"], "f16")
    yield derived("dy_f16_extended", "dy_gated_tied_f16_equal", "gated_tied_equal", full["extended"], "f16")


def newer_operators():
    """Attention and RMSNormalization, as PyTorch writes them at opset 23."""
    yield exported("2f_sdpa_opset_23", "sdpa", "2f", by="dy", opset=23)
    for form in ("dy", "2f"):
        yield derived(f"{form}_attention_causal", f"{form}_sdpa_opset_23", "sdpa", rewrites.causal_attention)


def fused_by_hand():
    """MultiHeadAttention: onnxruntime.transformers fused it in the exports of former years, and no longer finds it."""
    fused = rewrites.multi_head_attention(4)
    yield derived("dy_multi_head_attention", "dy_four_heads", "four_heads", fused)
    yield derived("dy_fused_by_hand", "dy_transformers_optimised", "four_heads", fused)


def to_be_refused():
    for make, culprit in refused.REFUSED.items():
        def run(_workshop, folder, make=make):
            refused.write(make, folder / "model.onnx")
        yield Model(f"refused_{make.__name__}", "", run, refused=culprit)


def all_models():
    found = [*base_cases(), *own_backbones(), *opsets(), *sdpa(), *static_sdpa(), *layouts(), *processed(), *newer_operators(),
             *fused_by_hand(), *to_be_refused()]
    assert len({model.name for model in found}) == len(found)
    return found
