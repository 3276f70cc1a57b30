"""The yardstick for lstc's accuracy: a T5 fine-tuned in PyTorch, by default the bundled one on the glosses.

    python benches/finetune.py                                        full fine-tuning, seeds 0, 1, 2
    python benches/finetune.py --method lora --lr 3e-3                LoRA r=8 on q and v
    python benches/finetune.py --method lst --lr 5e-3 --epochs 8      LST r=4, side blocks drawn at random
    python benches/finetune.py --model t5-mini --tasks glosses bbc    another model, and what public_tasks.py makes

A text goes in, its label comes out as text. AdamW, learning rate falling linearly to 0, no warm-up. An example counts
as right when its label is the most likely of all labels that the test set has: the sum of the log-probabilities of
the label's tokens and the end of sequence.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from peers import FullFineTuning, LadderSideTuning, LoRA, Trainer, count, peak_memory, trainable
from tasks import ROOT, files_of, held_out
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import T5ForConditionalGeneration

PAD, IGNORED = 0, -100
LONGEST = 128  # tokens in

METHODS = {
    "full": ("full fine-tuning", FullFineTuning),
    "lora": ("LoRA r=8 on q and v", lambda backbone: LoRA(backbone, 8)),
    "lst": ("LST r=4, random", lambda backbone: LadderSideTuning(backbone, 4)),
}


def read_examples(lines, tokenizer):
    """(tokens in, label) of each line; the tokens end with the end of sequence, also where they are cut."""
    rows = [json.loads(line) for line in lines]
    encoded = [tokenizer.encode(row["text"]).ids for row in rows]
    return [(ids if len(ids) <= LONGEST else ids[: LONGEST - 1] + ids[-1:], row["label"]) for ids, row in zip(encoded, rows)]


def padded(rows, value):
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def collate(sources, targets):
    """What a model reads, and the labels."""
    labels = padded(targets, IGNORED)
    input_ids = padded(sources, PAD)
    decoder_input_ids = F.pad(labels[:, :-1], (1, 0), value=PAD).clamp(min=0)
    attention_mask = padded([[1] * len(source) for source in sources], 0)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}, labels


def log_likelihood(model, inputs, labels):
    """The log-probability of each row's labels."""
    chosen = F.log_softmax(model(**inputs), dim=-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(labels == IGNORED, 0).sum(1)


def accuracy(model, examples, classes, batch):
    """The share of examples whose label is the most likely one."""
    names, right = list(classes), 0
    with torch.inference_mode():
        for start in range(0, len(examples), batch):
            rows = examples[start : start + batch]
            sources = [tokens for tokens, _ in rows for _ in names]
            scores = log_likelihood(model, *collate(sources, [classes[name] for _ in rows for name in names]))
            best = scores.view(len(rows), len(names)).argmax(1)
            right += sum(names[index] == label for index, (_, label) in zip(best, rows))
    return right / len(examples)


def train(args, seed, examples, classes):
    """A model trained on the examples, in an order drawn from the seed."""
    torch.manual_seed(seed)
    backbone = T5ForConditionalGeneration.from_pretrained(args.model, dropout_rate=0.0).train()
    trainer = Trainer(METHODS[args.method][1](backbone), args.lr)
    steps = args.epochs * -(-len(examples) // args.batch)
    decay = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 1 - step / steps)
    for _ in range(args.epochs):
        for indices in torch.randperm(len(examples)).split(args.batch):
            rows = [examples[index] for index in indices]
            trainer.step(*collate([tokens for tokens, _ in rows], [classes[label] for _, label in rows]))
            decay.step()
    return trainer.model.eval()


def measure(args, task, tokenizer):
    """Trains with each seed, and prints what is reached."""
    training, test = files_of(task, args.data)
    training, test = read_examples(training.open(), tokenizer), read_examples(held_out(test), tokenizer)
    classes = {label: tokenizer.encode(label).ids for label in sorted({label for _, label in test})}
    found = []
    for seed in args.seeds:
        start = time.perf_counter()
        model = train(args, seed, training, classes)
        seconds = time.perf_counter() - start
        found.append(accuracy(model, test, classes, args.batch))
        print(
            f"{args.model.name}, {task}, {METHODS[args.method][0]}, seed {seed}: {found[-1]:.1%} of {len(test)}, trained in "
            f"{seconds:.0f} s, {count(trainable(model)):,} trainable, peak {peak_memory() / 1e9:.2f} GB",
            flush=True,
        )
    each = ", ".join(f"{accuracy:.1%}" for accuracy in found)
    print(f"{args.model.name}, {task}: mean of {len(found)}: {statistics.mean(found):.1%} ({each})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", choices=METHODS, default="full")
    parser.add_argument("--model", type=Path, default=ROOT / "models/t5-nano", help="a folder; default: T5-nano")
    parser.add_argument("--tasks", nargs="+", default=["glosses"], help="glosses, or what public_tasks.py makes; default: glosses")
    parser.add_argument("--data", type=Path, default=ROOT / "target/bench/tasks", help="where those are; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=5, help="default: 5")
    parser.add_argument("--batch", type=int, default=64, help="default: 64")
    parser.add_argument("--lr", type=float, default=1e-3, help="default: 1e-3")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    for task in args.tasks:
        measure(args, task, tokenizer)


if __name__ == "__main__":
    main()
