"""Which folder a checkpoint's name means, found without torch: `tiny`, a folder, a run, a downloaded model."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from apiece.errors import UserError, nearest
from apiece.files import read_json_object


def resolve_checkpoint(name: str) -> Path:
    """Folder of a checkpoint: `tiny`, a folder, a run's folder (its newest checkpoint), or a downloaded Hugging Face
    id."""
    if name == "tiny":
        folder = Path(str(resources.files("apiece"))) / "assets" / "tiny"
        if not (folder / "config.json").is_file():
            raise UserError(
                "the embedded checkpoint is missing from this installation", where=folder, fix="reinstall apiece"
            )
        return folder
    folder = Path(name)
    if folder.is_file():
        raise UserError(
            "is a file, expected a checkpoint folder or a run folder", where=name, fix="name the folder that holds it"
        )
    if not folder.exists():
        folder = _elsewhere(name)
    if (folder / "config.json").is_file():
        return _readable(folder)
    found = (folder / "checkpoints").glob("step_*") if (folder / "checkpoints").is_dir() else ()
    steps = sorted(found, key=lambda path: (len(path.name), path.name))  # step_1000000 comes after step_999999
    complete = [s / "model" for s in steps if (s / "model" / "config.json").is_file()]
    if complete:
        return _readable(complete[-1])
    if (folder / "config.yaml").is_file():
        fix = f"resume it until it saves one: apiece train --resume {folder}"
        raise UserError("the run has no complete checkpoint yet", where=folder, fix=fix)
    raise UserError(
        "the folder holds no checkpoint (no config.json)", where=folder, fix="name a checkpoint or a run folder"
    )


def _elsewhere(name: str) -> Path:
    """The downloaded model of a name that is no folder here."""
    path = Path(name)
    is_local = path.is_absolute() or name.startswith((".", "~", "runs/")) or name.count("/") > 1
    if is_local or ("/" in name and path.parent.is_dir()):
        siblings = sorted(one.name for one in path.parent.iterdir() if one.is_dir()) if path.parent.is_dir() else []
        if not path.parent.is_dir():
            fix = f"there is no folder {path.parent} here either; paths are read from the current folder"
        elif not siblings:
            fix = f"{path.parent} holds no folders"
        else:
            more = f" and {len(siblings) - 8} more" if len(siblings) > 8 else ""
            fix = f"in {path.parent} there are: {', '.join(siblings[:8])}{more}"
        raise UserError(
            f"expected a checkpoint folder or a run folder, found nothing{nearest(path.name, siblings)}",
            where=name,
            fix=fix,
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise UserError(
            "expected a checkpoint folder, a run folder, `tiny`, or a downloaded Hugging Face id; found nothing"
            + nearest(name, ["tiny"]),
            where=name,
            fix="check the path, or download the model first: hf download " + name,
        ) from None


def _readable(folder: Path) -> Path:
    read_json_object(folder / "config.json", "a model's settings", fix="copy config.json from the original model again")
    return folder
