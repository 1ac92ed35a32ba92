"""Every key of the configuration and what this engine does with it; data only.

A row is the key, its default, what it does, and, where that is not always so, what it needs: a
name of ``NEEDS`` (config_check.py tests for it). Sections are joined by dots; ``*`` ends a section
whose keys belong to what is named in it (a class, a schedule), which checks them itself.
"""

from __future__ import annotations

from typing import Any, Tuple

Row = Tuple[str, Any, str, str]

#: What a key can need, in words.
NEEDS: dict[str, str] = {
    "never": "a version that reads it, which this is not",
    "zero": "ZeRO stage 1, 2 or 3",
    "stage 0": "ZeRO stage 0",
    "stage 1": "ZeRO stage 1",
    "stage 1 or 2": "ZeRO stage 1 or 2",
    "stage 3": "ZeRO stage 3",
    "stage 2 own": "ZeRO stage 2 without flat_gradients",
    "stage 2 fp16": "ZeRO stage 2 and fp16",
    "stage 2": "ZeRO stage 2",
    "stage 2 or 3 own": "ZeRO stage 2 or 3 without flat_gradients",
    "flat": "flat_gradients with reduce",
    "flat step": 'flat_gradients with reduce "step"',
    "buckets": "ZeRO stage 1 or 2 without flat_gradients",
    "any buckets": "ZeRO without flat_gradients",
    "legacy_stage1": "ZeRO stage 1 with legacy_stage1",
    "own reduction": "no flat_gradients",
    "former format": '"zero_optimization": true',
    "fp16": "fp16.enabled",
    "fp16 alone": "fp16.enabled and ZeRO stage 0",
    "dynamic scale": "fp16.enabled and no fp16.loss_scale",
    "tensorboard": "tensorboard.enabled",
    "flops_profiler": "flops_profiler.enabled",
}

_GENERAL: list[Row] = [
    ("train_batch_size", None, "samples of a step, all processes and micro-batches together", ""),
    ("train_micro_batch_size_per_gpu", None, "samples of a micro-batch of one process", ""),
    ("gradient_accumulation_steps", None, "micro-batches of a step; 1 where it cannot be told", ""),
    ("steps_per_print", 10, "steps between the lines on progress and throughput", ""),
    ("dump_state", False, "print the engine's attributes once it is made", ""),
    ("wall_clock_breakdown", False, "time forward, backward and step, and print it", ""),
    ("memory_breakdown", False, "nothing in this version", "never"),
    ("vocabulary_size", None, "a warning if it is no multiple of 8, and nothing else", ""),
    ("dataloader_drop_last", False, "leave out the last batch where it is not full", ""),
    ("checkpoint.tag_validation", "Warn", "Ignore, Warn or Fail where the tags differ", ""),
    ("checkpoint.verify", True, "compare a checkpoint's files with its manifest at loading", ""),
    (
        "optimizer.type",
        None,
        "adam, adamw, adagrad, adafactor, lamb, or a class of torch.optim",
        "",
    ),
    ("optimizer.params.*", None, "arguments of the optimizer, which refuses unknown ones", ""),
    ("optimizer.legacy_fusion", False, "the former wrapper of FusedAdam in fp16", "fp16 alone"),
    ("scheduler.type", None, "a schedule of DeepSpeed or of torch.optim.lr_scheduler", ""),
    ("scheduler.params.*", None, "arguments of the schedule, which refuses unknown ones", ""),
    ("gradient_clipping", 0.0, "the largest norm of a step's gradient; 0 for no limit", ""),
    ("sparse_gradients", False, "exchange embeddings' gradients as rows", "stage 0"),
    ("fp32_allreduce", False, "sum gradients in fp32", "stage 0"),
    ("prescale_gradients", False, "divide gradients before the sum", "own reduction"),
    ("gradient_predivide_factor", 1.0, "the divisor before the sum", "own reduction"),
    ("disable_allgather", False, "nothing in this version", "never"),
    ("allgather_size", 500000000, "allgather_bucket_size of the former format", "former format"),
    ("zero_allow_untested_optimizer", False, "ZeRO with an optimizer it was not tried with", ""),
]
_PRECISION: list[Row] = [
    ("fp16.enabled", False, "weights and gradients in fp16, masters in fp32", ""),
    ("fp16.loss_scale", 0, "a fixed loss scale; 0 for one that adapts", "fp16"),
    ("fp16.initial_scale_power", 16, "the first scale is 2 to this power", "dynamic scale"),
    (
        "fp16.loss_scale_window",
        1000,
        "steps without overflow until the scale doubles",
        "dynamic scale",
    ),
    ("fp16.hysteresis", 1, "overflows until the scale is halved", "dynamic scale"),
    ("fp16.min_loss_scale", 1, "the least scale", "dynamic scale"),
    (
        "fp16.fp16_master_weights_and_grads",
        False,
        "masters in fp16, with CPU offload",
        "stage 2 fp16",
    ),
    ("bfloat16.enabled", False, "weights and gradients in bfloat16, masters in fp32", ""),
    ("bf16.enabled", False, "the same under its later name", ""),
    ("amp.enabled", False, "NVIDIA Apex's mixed precision", ""),
    ("amp.*", None, "arguments of apex.amp.initialize", ""),
]
_ZERO: list[Row] = [
    ("stage", 0, "0 to 3: partition nothing, optimizer state, gradients too, weights too", ""),
    ("flat_gradients", False, "gradients in flat fp32 buffers; or a mapping", "stage 1 or 2"),
    ("flat_gradients.reduce", None, "step: once a step; micro_batch: in each", "stage 1 or 2"),
    (
        "flat_gradients.dtype",
        "same",
        "of messages: same as the weights, fp32, int8 (weights too)",
        "flat",
    ),
    ("flat_gradients.bucket_size", 8388608, "elements that step reduces together", "flat step"),
    (
        "flat_gradients.hierarchical",
        None,
        "add up inside each host first; None: not with NCCL",
        "flat step",
    ),
    ("allgather_bucket_size", 500000000, "elements of a gather of new weights", "buckets"),
    ("reduce_bucket_size", 500000000, "elements of a reduction of gradients", "any buckets"),
    ("reduce_scatter", True, "send gradients to their owner alone", "any buckets"),
    ("overlap_comm", False, "reduce gradients while the backward pass runs", "stage 2 or 3 own"),
    ("contiguous_gradients", True, "copy gradients to one buffer", "stage 2 or 3 own"),
    ("round_robin_gradients", False, "spread a layer's gradients over all owners", "stage 2"),
    ("ignore_unused_parameters", True, "allow parameters without a gradient", "stage 2 own"),
    ("load_from_fp32_weights", True, "load masters from the file, not the 16-bit weights", "zero"),
    ("allgather_partitions", True, "gather all weights at once", "legacy_stage1"),
    ("elastic_checkpoint", True, "files for another number of processes", "legacy_stage1"),
    ("legacy_stage1", False, "stage 1 as before 0.3.17; no experts", "stage 1"),
    ("cpu_offload", False, "offload_optimizer to the CPU, by its former name", "stage 2 or 3 own"),
    ("cpu_offload_params", False, "offload_param to the CPU, by its former name", "stage 3"),
    ("cpu_offload_use_pin_memory", False, "nothing in this version", "never"),
    ("sub_group_size", 1000000000, "elements that are updated together", "stage 3"),
    ("stage3_max_live_parameters", 1000000000, "elements gathered at a time", "stage 3"),
    ("stage3_max_reuse_distance", 1000000000, "elements until which weights are kept", "stage 3"),
    ("stage3_prefetch_bucket_size", 50000000, "elements gathered ahead", "stage 3"),
    ("stage3_param_persistence_threshold", 100000, "smaller parameters stay whole", "stage 3"),
    ("stage3_gather_fp16_weights_on_model_save", False, "save_fp16_model gathers them", "stage 3"),
    ("offload_param.device", "cpu", "cpu or nvme", "stage 3"),
    ("offload_param.nvme_path", None, "the folder for nvme", "stage 3"),
    ("offload_param.buffer_count", 5, "buffers for nvme", "stage 3"),
    ("offload_param.buffer_size", 1e8, "elements of a buffer", "stage 3"),
    ("offload_param.max_in_cpu", 1e9, "elements kept in memory with nvme", "stage 3"),
    ("offload_param.pin_memory", False, "page-locked memory", "stage 3"),
    ("offload_optimizer.device", "cpu", "cpu, or nvme at stage 3", "stage 2 or 3 own"),
    ("offload_optimizer.nvme_path", None, "the folder for nvme", "stage 3"),
    ("offload_optimizer.buffer_count", 4, "buffers for nvme", "stage 3"),
    ("offload_optimizer.pin_memory", False, "page-locked memory", "stage 3"),
    ("offload_optimizer.pipeline_read", False, "read the next part meanwhile", "stage 3"),
    ("offload_optimizer.pipeline_write", False, "write the last part meanwhile", "stage 3"),
    ("offload_optimizer.fast_init", False, "a quicker first write", "stage 3"),
]
_MODEL: list[Row] = [
    ("activation_checkpointing." + key, default, effect, "")
    for key, default, effect in (
        ("partition_activations", False, "spread what is kept over model parallel ranks"),
        ("number_checkpoints", None, "layers that are kept, for contiguous memory"),
        ("contiguous_memory_optimization", False, "keep them in one buffer"),
        ("synchronize_checkpoint_boundary", False, "wait for the device at each"),
        ("profile", False, "time them"),
        ("cpu_checkpointing", False, "keep them in the CPU's memory"),
    )
]
_MODEL += [
    ("sparse_attention." + key, default, effect, "")
    for key, default, effect in (
        ("mode", "fixed", "dense, fixed, variable, bigbird or bslongformer"),
        ("block", 16, "elements of a block's side"),
        ("different_layout_per_head", False, "a layout for each head"),
        ("num_local_blocks", 4, "blocks of a local window"),
        ("num_global_blocks", 1, "blocks that all attend to"),
        ("attention", "bidirectional", "or unidirectional"),
        ("horizontal_global_attention", False, "global blocks attend to all"),
        ("num_different_global_patterns", 1, "layouts of global blocks"),
        ("num_random_blocks", 0, "blocks chosen at random"),
        ("local_window_blocks", [4], "blocks of each local window"),
        ("global_block_indices", [0], "which blocks are global"),
        ("global_block_end_indices", None, "their ends, as ranges"),
        ("num_sliding_window_blocks", 3, "blocks of a sliding window"),
    )
]
_MODEL += [
    ("pipeline.stages", "auto", "nothing: PipelineModule's argument counts", "never"),
    ("pipeline.partition", "best", "nothing: PipelineModule's argument counts", "never"),
    ("pipeline.seed_layers", False, "nothing: PipelineModule's argument counts", "never"),
    ("pipeline.schedule", "1f1b", "or eager: how far the stages of a StageEngine run ahead", ""),
    ("pipeline.activation_checkpoint_interval", 0, "layers between those kept", ""),
    ("progressive_layer_drop.enabled", False, "give the model layers to leave out", ""),
    ("progressive_layer_drop.theta", 1.0, "the least share kept", ""),
    ("progressive_layer_drop.gamma", 0.001, "how soon it is reached", ""),
    ("curriculum_learning.enabled", False, "give the model a length that grows", ""),
    ("curriculum_learning.*", None, "arguments of the curriculum", ""),
]
_OTHER: list[Row] = [
    ("tensorboard.enabled", False, "write loss, rate and times for TensorBoard", ""),
    ("tensorboard.output_path", "", "the folder", "tensorboard"),
    ("tensorboard.job_name", "DeepSpeedJobName", "a folder in it", "tensorboard"),
    ("flops_profiler.enabled", False, "profile one step; times wall clock, too", ""),
    ("flops_profiler.profile_step", 1, "which step", "flops_profiler"),
    (
        "flops_profiler.module_depth",
        -1,
        "the depth of modules; -1 for the innermost",
        "flops_profiler",
    ),
    ("flops_profiler.top_modules", 1, "modules listed a depth", "flops_profiler"),
    ("flops_profiler.detailed", True, "print every module", "flops_profiler"),
    ("flops_profiler.output_file", None, "a file in place of the output", "flops_profiler"),
    ("quantize_training.enabled", False, "quantize weights while training", ""),
    ("quantize_training.*", None, "its settings, eigenvalue among them", ""),
    ("elasticity.enabled", False, "choose the batch for the number of processes", ""),
    ("elasticity.max_train_batch_size", None, "the largest batch", ""),
    ("elasticity.micro_batch_sizes", None, "micro-batches to choose of", ""),
    ("elasticity.min_gpus", 1, "the fewest processes", ""),
    ("elasticity.max_gpus", 10000, "the most processes", ""),
    ("elasticity.min_time", 0, "minutes that a run is to last", ""),
    ("elasticity.prefer_larger_batch", True, "of two fits the larger", ""),
    ("elasticity.ignore_non_elastic_batch_info", False, "allow the keys of batches beside it", ""),
    ("elasticity.version", 0.1, "of these settings", ""),
    ("aio.block_size", 1048576, "bytes of a transfer to nvme", "stage 3"),
    ("aio.queue_depth", 8, "transfers under way", "stage 3"),
    ("aio.thread_count", 1, "threads of a transfer", "stage 3"),
    ("aio.single_submit", False, "submit them one by one", "stage 3"),
    ("aio.overlap_events", True, "wait for several", "stage 3"),
]

#: Every key; in the order of the reference page.
KEYS: list[Row] = [
    *_GENERAL,
    *_PRECISION,
    *((f"zero_optimization.{key}", *rest) for key, *rest in _ZERO),
    *_MODEL,
    *_OTHER,
]
