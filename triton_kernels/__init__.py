"""Triton kernels of the MatMul-free layers, one file a kernel, and their plain torch twins in `reference`.

Imported as `llmnas.triton_kernels`; knows nothing of the rest of llmnas. `llmnas.nn.kernels` is the only caller.
Letters in every file: M tokens, K input features, N output features, W channels of a recurrence, T time, B batch.
"""
