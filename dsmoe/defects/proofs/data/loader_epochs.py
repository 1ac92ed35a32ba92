"""Defect 37, second part: the order of the samples in a second epoch."""

NUMBER = 37
TITLE = "Every epoch of the data loader has an order of its own"
PHASES = (2,)


def observe(tools, phase):
    import torch

    data = torch.utils.data.TensorDataset(torch.arange(40.0))
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = tools.start(
        model, {"train_micro_batch_size_per_gpu": 4}, optimizer, training_data=data
    )[2]
    return [[int(v) for batch in loader for v in batch[0]] for _ in range(3)]


def judge(seen):
    first, second, third = seen[0][0]
    if sorted(first) == first:
        return "lives", "the samples are not shuffled at all", "three orders"
    orders = len({tuple(first), tuple(second), tuple(third)})
    state = "fixed" if orders == 3 else "lives"
    text = f"{orders} order(s) in three epochs: they begin {first[:4]}, {second[:4]}, {third[:4]}"
    return state, text, "3 orders"
