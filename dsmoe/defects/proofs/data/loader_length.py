"""Defect 37, first part: the length of the data loader."""

NUMBER = 37
TITLE = "len() of the data loader is its number of batches"


def loader(tools, samples, size):
    import torch

    data = torch.utils.data.TensorDataset(torch.arange(float(samples)))
    model = torch.nn.Linear(1, 1)
    config = {"train_micro_batch_size_per_gpu": size}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return tools.start(model, config, optimizer, training_data=data)[2]


def observe(tools, phase):
    batches = loader(tools, 21, 4)
    return [len(batches), sum(1 for _ in batches)]


def judge(seen):
    length, batches = seen[0][0]
    state = "fixed" if length == batches == 6 else "lives"
    return state, f"len {length}, {batches} batches", "len 6, 6 batches (21 samples, 4 a batch)"
