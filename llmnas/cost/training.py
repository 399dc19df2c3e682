"""Memory of training a supernet in bytes a GPU, in closed form (no torch).

Model states follow the ZeRO paper (Rajbhandari et al. 2020, section 3.1) with what this project
really does: mixed precision keeps bf16 weights, fp32 gradient sums (several networks add up in one
step), and fp32 master weights with the two moments of AdamW. Left out: the allocator's
fragmentation, CUDA's context (about 1 GiB) and workspaces of libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmnas.space import Architecture, BaseModel, LayerSpec


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a supernet as stage 3 cuts them up.

    Attributes:
        total: all of them, used by an architecture or not.
        root: embedding, head and final norm: gathered for the whole forward and backward pass.
        block: of the largest block: gathered while it runs.
        one_moment: those of which an optimizer keeps one moment instead of two (the matrices of Muon).
    """

    total: int
    root: int
    block: int
    one_moment: int = 0


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes a GPU holds at the peak of a step, and bytes of main memory a process needs for offloading.

    Attributes:
        weights: in the type of training.
        gradients: sums over the networks of a step, and what is on its way.
        optimizer: fp32 master weights (where they are another copy) and the moments.
        gathered: stage 3's whole parameters, and their gradients, at one time.
        activations: kept for the backward pass.
        host: main memory of one process.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


def layer_saved_values(base: BaseModel, hidden_size: int, spec: LayerSpec) -> int:
    """Values a token leaves in one block for its backward pass, with attention that keeps no score matrix.

    Each norm: its input, the normalised input, its output, one scale: 3 H + 1. Attention: q, k, v, the mixed
    values and one log-sum-exp a head; with qk_norm the input and normalised input of q and k besides.
    SwiGLU: gate, its SiLU, up and their product, for each expert a token uses, with a copy of its input.
    An MLGRU is estimated at seven values a channel (three gates before and after their sigmoid, the state).
    """
    queries, keys = spec.q_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    norms = (3 * hidden_size + 1) * (1 if spec.mixer == "none" else 2)
    mixer = 0
    if spec.mixer == "attention":
        mixer = 2 * queries + 2 * keys + spec.q_heads
        mixer += 2 * (queries + keys) + spec.q_heads + spec.kv_heads if base.qk_norm else 0
    elif spec.mixer == "mlgru":
        mixer = 7 * queries
    routed = spec.top_k * hidden_size if spec.experts > 1 else 0
    return norms + mixer + routed + 4 * (spec.top_k * spec.ffn_size + spec.shared_size)


def saved_bytes(arch: Architecture, base: BaseModel, tokens: int, bytes_per_value: int, checkpoint_blocks: bool) -> int:
    """Activations of one forward pass over `tokens`, kept for the backward pass; logits in fp32 once.

    With `checkpoint_blocks` only the input of every block stays, and one block at a time is whole.
    """
    blocks = [layer_saved_values(base, arch.hidden_size, spec) for _, spec in arch.kept]
    kept = arch.hidden_size * len(blocks) + max(blocks) if checkpoint_blocks else sum(blocks)
    final_norm = 3 * arch.hidden_size + 1
    return tokens * (bytes_per_value * (kept + final_norm) + 4 * base.vocab_size)


def model_states(
    sizes: ModelSizes, stage: int, gpus: int, *, bf16: bool, offload: bool = False, bucket: int = 200_000_000
) -> TrainingMemory:
    """Weights, gradients, optimizer and gathered parameters of one process; no activations.

    Args:
        sizes: of the supernet.
        stage: 0 to 3. Stage 0 has no master weights, so it is fp32 only.
        gpus: all processes.
        bf16: bf16 weights, else fp32.
        offload: stage 3 with weights and optimizer in main memory.
        bucket: values that stages 1 to 3 reduce at once.

    Raises:
        ValueError: stage 0 in bf16, offloading below stage 3, or weights of one moment above stage 0.
    """
    if sizes.one_moment and stage:
        raise ValueError("Muon, which keeps one moment, needs stage 0")
    if (stage == 0 and bf16) or (offload and stage < 3):
        raise ValueError("stage 0 trains in fp32 only; offloading needs stage 3")
    value, total = 2 if bf16 else 4, sizes.total
    share = -(-total // gpus)
    moving = value * min(bucket, total)
    if stage == 0:
        return TrainingMemory(4 * total, 4 * total, 8 * total - 4 * sizes.one_moment, 0, 0)
    if stage == 1:
        # every process adds up all gradients before they are reduced; in bf16 in a second, fp32 buffer
        return TrainingMemory(value * total, (6 if bf16 else 4) * total, 12 * share, 0, 0)
    if stage == 2:
        return TrainingMemory(value * total, 4 * share + moving, 12 * share, 0, 0)
    gathered = 2 * value * (sizes.root + sizes.block)
    if offload:
        return TrainingMemory(0, 4 * share + moving, 0, gathered, 0, host=(value + 16) * share)
    return TrainingMemory(value * share, 4 * share + moving, 12 * share, gathered, 0)
