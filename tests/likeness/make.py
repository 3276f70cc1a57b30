"""Writes the models of this folder: other families than those lstc reads, tiny, as PyTorch's exporters write them.

    pip install torch==2.15.* transformers==5.23.* onnx==1.23.* onnxscript
    python make.py             every model
    python make.py bert vit    these

Weights are random, and are never run: a test reads the graphs alone. The exporters' metadata is left out, as are names, of which
nothing may depend: those of inputs and outputs stay, for people.
"""

import contextlib
import io
import logging
import sys
import warnings
from pathlib import Path

import onnx
import torch
import transformers
from torch import nn

HERE = Path(__file__).resolve().parent
VOCABULARY, WIDTH, HEADS, LAYERS = 32, 8, 2, 1
TEXT = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=16)


class Model(nn.Module):
    """Calls a model by names, and gives some of its outputs."""

    def __init__(self, model, inputs, outputs):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *values):
        out = self.model(**dict(zip(self.inputs, values)), use_cache=False, return_dict=True)
        return tuple(out[name] for name in self.outputs)


class Plain(Model):
    """The same for models without a cache."""

    def forward(self, *values):
        out = self.model(**dict(zip(self.inputs, values)), return_dict=True)
        return tuple(out[name] for name in self.outputs)


def tokens(length=5):
    return torch.arange(2 * length).reshape(2, length) % (VOCABULARY - 2) + 1


def ones(length=5):
    return torch.ones(2, length, dtype=torch.int64)


AXES = {0: "batch", 1: "length"}


def export(name, model, inputs, outputs, *, dynamo=False, wrap=Model, free=True, opset=17):
    model = model.eval()
    values = tuple(inputs.values())
    wrapped = wrap(model, list(inputs), outputs).eval()
    path = HERE / f"{name}.onnx"
    free = {n: dict(list(AXES.items())[: min(v.dim(), 2)]) for n, v in inputs.items()} if free else {}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(wrapped, values, path, input_names=list(inputs), output_names=outputs, dynamo=True,
                              opset_version=18, external_data=False)
        else:
            torch.onnx.export(wrapped, values, path, input_names=list(inputs), output_names=outputs, dynamo=False,
                              opset_version=opset, dynamic_axes=free)
    strip(path)
    print(f"{name}: {path.stat().st_size // 1024} KB")


def strip(path):
    model = onnx.load(path)
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:], model.functions[:]
    kept = {v.name for v in [*model.graph.input, *model.graph.output]}
    names = {}
    short = lambda name: name if name in kept or not name else names.setdefault(name, f"v{len(names)}")
    for place, node in enumerate(model.graph.node):
        node.doc_string = ""
        del node.metadata_props[:]
        node.name = f"n{place}"
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    for weight in model.graph.initializer:
        weight.name = short(weight.name)
    model.doc_string = ""
    onnx.save(model, path)


def text(length=5):
    return {"input_ids": tokens(length), "attention_mask": ones(length)}


def both(length=5, target=4):
    return {**text(length), "decoder_input_ids": tokens(target)}


HIDDEN, LOGITS = ["last_hidden_state"], ["logits"]
t = transformers


def t5_config(**options):
    options = {"feed_forward_proj": "relu", "num_layers": LAYERS, **options}
    return t.T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=4, d_ff=16, num_heads=HEADS,
                      decoder_start_token_id=0, attn_implementation="eager", **options)


def t5(**options):
    return t.T5ForConditionalGeneration(t5_config(**options))


def bart_config(**options):
    return dict(vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
                decoder_attention_heads=HEADS, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=16, pad_token_id=1,
                attn_implementation="eager", **options)


def whisper_config():
    return t.WhisperConfig(**bart_config(), num_mel_bins=4, max_source_positions=8, max_target_positions=8,
                           decoder_start_token_id=1, bos_token_id=1, eos_token_id=1)


FEATURES = {"input_features": torch.zeros(2, 4, 16)}
PIXELS = {"pixel_values": torch.zeros(2, 3, 16, 16)}


def llama(kind, config, **options):
    return kind(config(vocab_size=VOCABULARY, num_key_value_heads=HEADS, max_position_embeddings=16, pad_token_id=0,
                       attn_implementation="eager", **TEXT, **options))


class Step(nn.Module):
    """A T5 decoder's step: tokens, the encoder's output, and a cache of the block's keys and values."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, hidden, mask, *past):
        pairs = [past[i:i + 4] for i in range(0, len(past), 4)]
        cache = t.EncoderDecoderCache(t.DynamicCache(), t.DynamicCache())
        for layer, (k, v, cross_k, cross_v) in enumerate(pairs):
            cache.self_attention_cache.update(k, v, layer)
            cache.cross_attention_cache.update(cross_k, cross_v, layer)
            cache.is_updated[layer] = True
        out = self.model(decoder_input_ids=tokens, encoder_outputs=(hidden,), attention_mask=mask, past_key_values=cache, use_cache=True)
        past = out.past_key_values.self_attention_cache.layers
        return (out.logits, *[state for layer in past for state in (layer.keys, layer.values)])


class DecoderAlone(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, hidden, mask):
        return self.model(decoder_input_ids=tokens, encoder_outputs=(hidden,), attention_mask=mask, use_cache=False).logits


def positional(name, model, values, inputs, outputs):
    path = HERE / f"{name}.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        axes = {n: {0: "batch", 2 if v.dim() == 4 else 1: f"length_{i}"} for i, (n, v) in enumerate(zip(inputs, values))}
        torch.onnx.export(model.eval(), tuple(values), path, input_names=inputs, output_names=outputs, dynamo=False,
                          opset_version=17, dynamic_axes=axes)
    strip(path)
    print(f"{name}: {path.stat().st_size // 1024} KB")


class LowRank(nn.Module):
    """A matrix with a low-rank term beside it, `x W + s (x A) B`, as PEFT writes it before it is merged."""

    def __init__(self, inner, rank=2):
        super().__init__()
        self.inner = inner
        self.a = nn.Linear(inner.in_features, rank, bias=False)
        self.b = nn.Linear(rank, inner.out_features, bias=False)

    def forward(self, x):
        return self.inner(x) + self.b(self.a(x)) * 2.0


def with_lora(model, names=("q", "v")):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in names and isinstance(child, nn.Linear):
                setattr(module, name, LowRank(child))
    return model


def step():
    state = lambda length: torch.zeros(2, HEADS, length, 4)
    values = [tokens(1), torch.zeros(2, 5, WIDTH), ones(), state(3), state(3), state(5), state(5)]
    names = ["decoder_input_ids", "encoder_hidden_states", "encoder_attention_mask", "past.0", "past.1", "past.2", "past.3"]
    positional("t5_step", Step(t5()), values, names, ["logits", "present.0", "present.1"])


def decoder_alone(name, model):
    positional(name, DecoderAlone(model), [tokens(4), torch.zeros(2, 5, WIDTH), ones()],
               ["decoder_input_ids", "encoder_hidden_states", "encoder_attention_mask"], ["logits"])


class WhisperDecoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, hidden):
        mask = torch.ones_like(tokens)
        return self.model(decoder_input_ids=tokens, decoder_attention_mask=mask, encoder_outputs=(hidden,), use_cache=False).logits


def pix2struct():
    config = t.Pix2StructConfig(
        text_config=dict(vocab_size=VOCABULARY, hidden_size=WIDTH, d_kv=4, d_ff=16, num_layers=LAYERS, num_heads=HEADS),
        vision_config=dict(hidden_size=WIDTH, patch_embed_hidden_size=12, d_ff=16, d_kv=4, num_hidden_layers=LAYERS,
                           num_attention_heads=HEADS, seq_len=8, max_patches=8),
        attn_implementation="eager")
    return t.Pix2StructForConditionalGeneration(config)


PATCHES = {"flattened_patches": torch.cat([torch.ones(2, 6, 2), torch.zeros(2, 6, 12)], -1), "attention_mask": torch.ones(2, 6),
           "decoder_input_ids": tokens(4)}

BERT = dict(vocab_size=VOCABULARY, max_position_embeddings=16, attn_implementation="eager", **TEXT)
VISION = dict(image_size=16, patch_size=8, attn_implementation="eager", **TEXT)

MODELS = {
    "bert": lambda n, **o: export(n, t.BertModel(t.BertConfig(**BERT)), {**text(), "token_type_ids": 0 * ones()}, HIDDEN, wrap=Plain, **o),
    "bert_classifier": lambda n, **o: export(n, t.BertForSequenceClassification(t.BertConfig(**BERT)), text(), LOGITS, wrap=Plain, **o),
    "bert_masked_lm": lambda n, **o: export(n, t.BertForMaskedLM(t.BertConfig(**BERT)), text(), LOGITS, wrap=Plain, **o),
    "distilbert": lambda n, **o: export(n, t.DistilBertModel(t.DistilBertConfig(
        vocab_size=VOCABULARY, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=16, max_position_embeddings=16,
        attn_implementation="eager")), text(), HIDDEN, wrap=Plain, **o),
    "gpt2": lambda n, **o: export(n, t.GPT2LMHeadModel(t.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=16, attn_implementation="eager")),
        text(), LOGITS, **o),
    "llama": lambda n, **o: export(n, llama(t.LlamaForCausalLM, t.LlamaConfig), text(), LOGITS, **o),
    "qwen2": lambda n, **o: export(n, llama(t.Qwen2ForCausalLM, t.Qwen2Config), text(), LOGITS, **o),
    "bart": lambda n, **o: export(n, t.BartForConditionalGeneration(t.BartConfig(**bart_config())), both(), LOGITS, **o),
    "marian": lambda n, **o: export(n, t.MarianMTModel(t.MarianConfig(**bart_config(decoder_start_token_id=1))), both(), LOGITS, **o),
    "vit": lambda n, **o: export(n, t.ViTForImageClassification(t.ViTConfig(**VISION)), PIXELS, LOGITS, wrap=Plain, **o),
    "vit_features": lambda n, **o: export(n, t.ViTModel(t.ViTConfig(**VISION)), PIXELS, HIDDEN, wrap=Plain, **o),
    "clip_vision": lambda n, **o: export(n, t.CLIPVisionModel(t.CLIPVisionConfig(**VISION)), PIXELS, HIDDEN, wrap=Plain, **o),
    "clip": lambda n, **o: export(n, t.CLIPModel(t.CLIPConfig(
        text_config=dict(vocab_size=VOCABULARY, max_position_embeddings=16, eos_token_id=2, **TEXT),
        vision_config=dict(image_size=16, patch_size=8, **TEXT), projection_dim=WIDTH, attn_implementation="eager")),
        {**text(), **PIXELS}, ["logits_per_image"], wrap=Plain, free=False, **o),
    "whisper": lambda n, **o: export(n, t.WhisperForConditionalGeneration(whisper_config()),
                                     {**FEATURES, "decoder_input_ids": tokens(4), "decoder_attention_mask": ones(4)}, LOGITS, free=False, **o),
    "whisper_encoder": lambda n, **o: export(n, t.WhisperModel(whisper_config()).get_encoder(), FEATURES, HIDDEN, wrap=Plain, free=False, **o),
    "whisper_decoder": lambda n: positional(n, WhisperDecoder(t.WhisperForConditionalGeneration(whisper_config())),
                                            [tokens(4), torch.zeros(2, 8, WIDTH)],
                                            ["decoder_input_ids", "encoder_hidden_states"], ["logits"]),
    "pix2struct": lambda n, **o: export(n, pix2struct(), PATCHES, LOGITS, **o),
    "t5_embedded": lambda n, **o: export(n, t5(), {
        "inputs_embeds": torch.zeros(2, 5, WIDTH), "attention_mask": ones(), "decoder_input_ids": tokens(4)}, LOGITS, **o),
    "t5_encoder": lambda n, **o: export(n, t5().get_encoder(), text(), HIDDEN, wrap=Plain, **o),
    "t5_labels": lambda n, **o: export(n, t5(), {**text(), "labels": tokens(4)}, LOGITS, **o),
    "t5_labels_loss": lambda n, **o: export(n, t5(), {**text(), "labels": tokens(4)}, ["loss", "logits"], **o),
    "t5_decoder": lambda n: decoder_alone(n, t5()),
    "t5_step": lambda n: step(),
    "t5_lora": lambda n, **o: export(n, with_lora(t5()), both(), LOGITS, **o),
}

# Exported with dynamo too.
DYNAMO = ["bert", "gpt2", "llama", "bart", "vit", "whisper", "pix2struct", "t5_embedded", "t5_labels", "t5_lora"]


def main():
    logging.disable(logging.WARNING)
    t.logging.set_verbosity_error()
    torch.manual_seed(0)
    wanted = sys.argv[1:]
    for name, make in MODELS.items():
        if not wanted or name in wanted:
            make(name)
    for name in DYNAMO:
        if not wanted or f"{name}_dynamo" in wanted:
            MODELS[name](f"{name}_dynamo", dynamo=True)


if __name__ == "__main__":
    main()
