"""Defect 21: mistakes in a host file."""

NUMBER = 21
TITLE = "A host file with a mistake is refused with its line"

CASES = {"lots=8": "a lots=8\n", "slots=0": "a slots=0\n", "no slots": "a\n", "empty": "\n"}


def observe(tools, phase):
    from pathlib import Path

    from deepspeed.launcher.runner import fetch_hostfile

    found = {}
    for name, text in CASES.items():
        file = Path(tools.folder, "hostfile")
        file.write_text(text)
        try:
            found[name] = f"accepted as {dict(fetch_hostfile(str(file)) or {})}"
        except (Exception, SystemExit) as error:
            found[name] = f"refused: {error}"[:80]
    return found


def judge(seen):
    found = seen[0][0]
    accepted = {name: text for name, text in found.items() if text.startswith("accepted")}
    text = "; ".join(f"{name}: {said}" for name, said in (accepted or found).items())
    return ("lives" if accepted else "fixed"), text, "all four are refused"
