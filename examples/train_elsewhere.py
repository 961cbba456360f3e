"""Export a run, read it as a dataset, and train on it with another trainer: here the Trainer of transformers.

The trainer of TRL takes the same rows as they are:

    SFTTrainer("Qwen/Qwen3-0.6B", train_dataset=load_dataset("exported/dataset", split="train"))
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import sector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/first"), help="run directory")
    parser.add_argument("--to", type=Path, default=Path("exported"), help="directory to create")
    parser.add_argument("--small", action="store_true", help="train for 8 steps instead of 200")
    options = parser.parse_args()
    exported = sector.export(options.run, options.to)
    rows = load_dataset(str(exported.dataset), split="train")
    print(f"{len(rows):,} rows; the first: {rows[0]['prompt']}{rows[0]['completion']}")

    tokenizer = AutoTokenizer.from_pretrained(exported.model)
    model = AutoModelForCausalLM.from_pretrained(exported.model)

    def collate(batch: list[dict[str, str]]) -> dict[str, object]:
        ids = tokenizer([row["prompt"] + row["completion"] for row in batch], padding=True, return_tensors="pt")
        labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
        return {**ids, "labels": labels}

    arguments = TrainingArguments(
        output_dir=str(options.to / "trained"), max_steps=8 if options.small else 200, learning_rate=1e-4,
        per_device_train_batch_size=8 if options.small else 64, logging_steps=2 if options.small else 20,
        save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    for line in trainer.state.log_history:
        if "loss" in line:
            print(f"step {line['step']:4}  loss {float(line['loss']):.4f}  {'#' * round(20 * float(line['loss']))}")


if __name__ == "__main__":
    main()
