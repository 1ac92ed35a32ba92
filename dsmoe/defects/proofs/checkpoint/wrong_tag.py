"""Defect 54, part: a tag that the checkpoint folder does not have."""

NUMBER = 54
TITLE = "A wrong tag is refused by name"


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = tools.start(model, None, optimizer)[0]
    engine.save_checkpoint(tools.folder, tag="one")
    try:
        found = engine.load_checkpoint(tools.folder, tag="eleven")
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200].replace(tools.folder, "FOLDER")
    return f"no error; it returned {found!r}"


def judge(seen):
    found = seen[0][0]
    named = "eleven" in found and not found.startswith("no error")
    return ("fixed" if named else "lives"), found, "an error that names the tag eleven"
