"""Defect 35, second part: the average of the gradient of nn.Embedding(sparse=True)."""

NUMBER = 35
TITLE = "The gradient of nn.Embedding(sparse=True) is averaged over the processes"
PHASES = (2,)


def observe(tools, phase):
    import torch

    torch.manual_seed(0)
    model = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    engine = tools.start(model, None, optimizer)[0]
    out = engine(torch.tensor([tools.rank + 1], device=engine.device))
    tools.step(engine, out.sum())
    return tools.values(before - engine.module.weight.detach().cpu())


def judge(seen):
    right = [0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0]
    found = [[round(v, 4) for v in each] for each in seen[0]]
    state = "fixed" if all(each == right for each in found) else "lives"
    return state, f"update on process 0 {found[0]}, on process 1 {found[1]}", f"{right} on both"
