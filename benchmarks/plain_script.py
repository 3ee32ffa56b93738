"""A first script of a user: SFTTrainer with its defaults, for `benchmarks/training.py` to compare with."""

from __future__ import annotations

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

model_folder, rows, output, method, steps, batch_size, rate = sys.argv[1:]
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
four_bit = nf4 if method == "qlora" else None
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, quantization_config=four_bit),
    args=SFTConfig(
        output_dir=output,
        use_cpu=True,
        max_steps=int(steps),
        per_device_train_batch_size=int(batch_size),
        learning_rate=float(rate),
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=load_dataset(rows, split="train"),
    processing_class=AutoTokenizer.from_pretrained(model_folder),
    peft_config=None if method == "full" else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
