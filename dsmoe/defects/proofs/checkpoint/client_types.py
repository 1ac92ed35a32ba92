"""Defect 52, part: a client_state that is saved and cannot be loaded."""

NUMBER = 52
TITLE = "A client_state that was saved can be loaded"
PHASES = (1, 1)
TORCH_DEFAULTS = True


def observe(tools, phase):
    import argparse

    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise tools.NotApplicable("torch before 2.6 loads any pickle")
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = tools.start(model, None, optimizer)[0]
    try:
        if phase == 0:
            options = argparse.Namespace(width=3)
            engine.save_checkpoint(tools.folder, tag="one", client_state={"options": options})
            return None
        if not torch.os.path.exists(f"{tools.folder}/one"):
            return "nothing was saved"
        return str(engine.load_checkpoint(tools.folder, tag="one")[1].get("options"))
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:150]


def judge(seen):
    right = "refused at saving with the reason, or loaded"
    saved, loaded = seen[0][0], seen[1][0]
    if saved:
        return ("fixed" if "options" in saved else "lives"), f"saving: {saved}", right
    return ("fixed" if "width=3" in loaded else "lives"), f"saved; loading: {loaded}", right
