# Copyright 2026 The dimple_hf team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""One of two processes that train one model in shards (FSDP2), for the tests. `python two_processes_fsdp.py OUT` under
the variables of `torch.distributed` (rank, world size, address, port); [`main`] alone does the same without sharding.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import training_run
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from two_processes import mixed_rows

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import DimpleDataCollator

LEARNING_RATE = 0.02


def shard(model: DimpleForConditionalGeneration, world_size: int) -> None:
    """Shards as accelerate does by `recipes/accelerate/fsdp2.yaml`; on CPUs it refuses to."""
    mesh = init_device_mesh("cpu", (world_size,))
    for module in (*model.model.layers, model.get_input_embeddings()):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard([model.model.norm, model.lm_head], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)


def train_step(model: DimpleForConditionalGeneration, rank: int, world_size: int) -> float:
    """One step of SGD on this process's share of the rows; returns the loss over all rows."""
    collator = DimpleDataCollator(DimpleProcessor.from_pretrained(training_run.CHECKPOINT))
    rows = mixed_rows(4)  # one process has the rows with images, the other those without
    num_items = int((collator(rows)["labels"] != -100).sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss = model(**collator(rows[rank::world_size]), num_items_in_batch=num_items).loss
    (world_size * loss).backward()  # FSDP averages gradients over processes; the loss is a sum's share
    optimizer.step()
    loss = loss.detach()
    if world_size > 1:
        dist.all_reduce(loss)
    return float(loss)


def answers(model: DimpleForConditionalGeneration) -> list[list[int]]:
    """Tokens of answers to two questions with images."""
    processor = DimpleProcessor.from_pretrained(training_run.CHECKPOINT)
    chats = [[row["messages"][0]] for row in training_run.make_rows(2)]
    text = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    images = [row["images"] for row in training_run.make_rows(2)]
    inputs = processor(text=text, images=images, padding_side="left", return_tensors="pt")
    sequences = model.eval().generate(**inputs, max_new_tokens=6, eos_token_id=None)
    return sequences[:, inputs["input_ids"].shape[1] :].tolist()


def main(output_dir: Path) -> None:
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    model = DimpleForConditionalGeneration.from_pretrained(training_run.CHECKPOINT)
    model.mask_seed = 0
    result = {"losses": [], "answers": [], "unregistered": ""}
    if world_size > 1:
        dist.init_process_group("gloo")
        shard(model, world_size)
    for full_attn_mask in (False, True):
        model.config.full_attn_mask = full_attn_mask
        result["losses"].append(train_step(model.train(), rank, world_size))
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(output_dir, state_dict=state)
    if world_size > 1:
        try:
            answers(model)
        except RuntimeError as error:
            result["unregistered"] = str(error)
        register_fsdp_forward_method(model, "generate")
    for full_attn_mask in (False, True):
        model.config.full_attn_mask = full_attn_mask
        result["answers"].append(answers(model))
    (output_dir / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    # A process of gloo may abort while the interpreter ends, after all its work is done.
    os._exit(0)
