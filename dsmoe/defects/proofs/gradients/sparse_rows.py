"""Defect 35, first part: a row of a sparse gradient whose elements sum to 0."""

NUMBER = 35
TITLE = "sparse_gradients keeps a row whose elements sum to 0"
PHASES = (2,)


def observe(tools, phase):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(4, 2)

        def forward(self, rows):
            return self.table(rows)

    torch.manual_seed(0)
    model = Net()
    wanted = torch.tensor([[1.0, -1.0], [1.0, 2.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.table.weight.detach().clone()
    try:
        engine = tools.start(model, {"sparse_gradients": True}, optimizer)[0]
    except Exception as error:
        if "has been removed" in str(error):
            raise tools.NotApplicable("sparse_gradients has been removed, and is refused") from None
        raise
    out = engine(torch.tensor([1, 2], device=engine.device))
    tools.step(engine, (out * wanted.to(out.device)).sum())
    return tools.values(before - engine.module.table.weight.detach().cpu())


def judge(seen):
    right = [0.0, 0.0, 1.0, -1.0, 1.0, 2.0, 0.0, 0.0]
    found = [round(v, 4) for v in seen[0][0]]
    return ("fixed" if found == right else "lives"), f"update {found}", f"update {right}"
