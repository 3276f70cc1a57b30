"""Writes what Hugging Face's tokenizers make of some texts, and two small tokenizers of other kinds.

    python -m venv env && env/bin/pip install tokenizers==0.23.3
    env/bin/python make.py

encodings.json: for each tokenizer its texts, each with a limit and the ids that it is cut to. The end token stands last. `bpe.json`
has no post-processor, so that the end token is put there here; it also has padding and truncation configured, which a
reader has to leave out.
"""

import json
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

TEXTS = [
    "",
    " ",
    "   \t  ",
    "\n",
    "a person with good manners",
    "A Person, with GOOD manners!",
    "  two  spaces   and more    ",
    "tab\tand\nline\r\nends",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space",
    "zero\u200bwidth\u200djoiner\ufeffmark",
    "caf\u00e9 and cafe\u0301 are one",
    "\u0130stanbul \u00df \u01c5 \ufb01ne \u2460 \u00bd x\u00b2",
    "full\uff57\uff49\uff44\uff54\uff48 letters",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "emoji \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "control \u0000\u0001\u0007 characters",
    "\u2581 a metaspace \u2581\u2581 of its own",
    "the end </s> in the middle",
    "</s> first",
    "<pad> and <unk> and <extra_id_0> spelled",
    "[CLS] and [SEP] spelled",
    "<extra_id_0><extra_id_1>glued<extra_id_99>",
    "1234567890 3.14159 -1e-5 0x1F",
    "http://example.org/a?b=c&d=%20#e",
    "{'json': [1, 2, \"three\"]}",
    "antidisestablishmentarianism",
    "x" * 300,
    "shrub often cultivated for its scarlet bracted flowers " * 40,
    "word " * 1000,
    "\U0001f600" * 100,
    "a" + " " * 2000 + "b",
]
LIMITS = [128, 16, 2]

LINES = [
    "a small dog and a small cat play in the garden",
    "the garden has a tree, and the tree has many birds",
    "she sells sea shells by the sea shore",
    "Gl\u00fcck und Gl\u00e4ser, caf\u00e9s et gar\u00e7ons",
] * 4


def bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.enable_padding(length=40, pad_id=0, pad_token="<pad>")
    tokenizer.enable_truncation(3)
    tokenizer.save(str(HERE / "bpe.json"))


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(HERE / "wordpiece.json"))


def encodings(path, end, post_processed):
    tokenizer = Tokenizer.from_file(str(ROOT / path))
    tokenizer.no_padding()
    rows = []
    for text in TEXTS:
        for limit in LIMITS:
            tokenizer.enable_truncation(limit if post_processed else limit - 1)
            ids = tokenizer.encode(text).ids + ([] if post_processed else [end])
            assert len(ids) <= limit and ids[-1] == end
            rows.append({"text": text, "limit": limit, "ids": ids})
    return {"tokenizer": path, "end": end, "texts": rows}


def lines(cases):
    """A text a line, so that a change can be read."""
    for case in cases:
        rows = ",\n".join(json.dumps(row) for row in case.pop("texts"))
        yield f'{json.dumps(case)[:-1]}, "texts": [\n{rows}\n]}}'


bpe()
wordpiece()
made = [
    encodings("models/t5-nano/tokenizer.json", 1, True),
    encodings("tests/data/bpe.json", 1, False),
    encodings("tests/data/wordpiece.json", 3, True),
]
(HERE / "encodings.json").write_text("[\n" + ",\n".join(lines(made)) + "\n]\n")
print(f"tokenizers {tokenizers.__version__}")
