"""Writes byt5.json: what transformers' ByT5Tokenizer makes of some texts, with its end token last.

    python -m venv env && env/bin/pip install transformers==5.23.0
    env/bin/python byt5.py
"""

import json
from pathlib import Path

from transformers import ByT5Tokenizer

TEXTS = [
    "a person with good manners",
    "  two  spaces ",
    "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600",
    "tab\tand\nline\r\nends",
    "control \u0000\u0001\u007f",
    "fill <extra_id_0> and <extra_id_124>",
    "</s>",
    "a <pad> b",
    "<0x41> is text",
]


def main():
    tokenizer = ByT5Tokenizer()
    texts = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    Path(__file__).with_name("byt5.json").write_text(json.dumps(texts) + "\n")


if __name__ == "__main__":
    main()
