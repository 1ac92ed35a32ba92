"""Defect 52, part: a key of client_state that is a key of the checkpoint."""

NUMBER = 52
TITLE = "A key of client_state cannot replace the weights in a checkpoint"
PHASES = (1, 1)


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0 if phase == 0 else 5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = tools.start(model, None, optimizer)[0]
    if phase == 0:
        try:
            engine.save_checkpoint(tools.folder, tag="one", client_state={"module": "resnet"})
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:150]
        return None
    try:
        engine.load_checkpoint(tools.folder, tag="one")
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:150]
    return engine.module.weight.item()


def judge(seen):
    right = "refused at saving, or loaded with the weights of the checkpoint"
    if seen[0][0]:
        named = "module" in seen[0][0] or "client_state" in seen[0][0]
        return ("fixed" if named else "lives"), f"saving: {seen[0][0]}", right
    found = seen[1][0]
    return ("fixed" if found == 1.0 else "lives"), f"saved; loading: {found}", right
