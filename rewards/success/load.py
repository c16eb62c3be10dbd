"""From a folder to the success model in it."""

from pathlib import Path

from rewards.success.errors import SuccessError
from rewards.success.model import SuccessModel, read_folder


def load_model(folder: Path) -> SuccessModel:
    """What a :meth:`rewards.success.model.SuccessModel.save` wrote; :class:`SuccessError` where there is none."""
    kind, about = read_folder(folder)
    match kind:
        case "backbone":
            from rewards.success.backbone import BackboneModel

            return BackboneModel.load(folder, about)
        case "vlm":
            from rewards.success.vlm import VLMModel

            return VLMModel.load(folder, about)
        case _:
            raise SuccessError(f"{folder}: unknown kind of success model '{kind}'; use a newer version of Polestar")
