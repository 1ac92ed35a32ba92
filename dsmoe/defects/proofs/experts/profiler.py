"""Defect 55, part: products by torch.bmm in the FLOP profiler."""

NUMBER = 55
TITLE = "The FLOP profiler counts torch.bmm"


def observe(tools, phase):
    import torch
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 4, 8))

        def forward(self, x):
            return torch.bmm(x, self.weight)

    model = Net()
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(torch.ones(2, 16, 4))
    found = profiler.get_total_flops()
    profiler.end_profile()
    return float(found)


def judge(seen):
    found = seen[0][0]
    right = 2 * 2 * 16 * 4 * 8
    # the oldest releases count a product and its addition as one
    state = "fixed" if found in (right, right / 2) else "lives"
    return state, f"{found:g} operations", f"{right}"
