"""Where the files of a dataset lie, and which of its lists are read: settings of the sources of data."""

from __future__ import annotations

from dataclasses import dataclass

from visionlab.data.difficult import Difficult
from visionlab.data.selection import Validation
from visionlab.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Root(Settings):
    """Where a dataset lies.

    Args:
        root: the folder of the dataset, from which its other paths start.
    """

    root: str


@dataclass(frozen=True, kw_only=True)
class CocoFiles(Settings):
    """The files of a COCO dataset; without them they are looked for in its folder.

    Args:
        annotations: the COCO json, or several, whose categories of one name are one.
        images: the folder of the images, or one for each json; by default the one near the json that has them.
    """

    annotations: str | list[str] | None = None
    images: str | list[str] | None = None

    def __post_init__(self) -> None:
        if self.annotations is not None and not self.annotations:
            raise ValueError(f"annotations: expected a json or several, got {self.annotations!r}")
        if self.annotations is None and self.images is not None:
            raise ValueError("images: no effect without annotations")
        _check_folders("images", self.images, self.annotations)


@dataclass(frozen=True, kw_only=True)
class LabelledCocoFiles(CocoFiles, Validation):
    """The files of a COCO dataset, to train on and to evaluate on.

    Args:
        val_annotations: the COCO json to evaluate on, or several.
        val_images: the folder of its images, or one for each json; by default ``images``.
    """

    val_annotations: str | list[str] | None = None
    val_images: str | list[str] | None = None

    def __post_init__(self) -> None:
        CocoFiles.__post_init__(self)
        Validation.__post_init__(self)
        if self.val_fraction is not None and self.val_annotations is not None:
            raise ValueError("val_fraction: expected either val_fraction or val_annotations, got both")
        if self.val_annotations is None and self.val_images is not None:
            raise ValueError("val_images: no effect without val_annotations")
        _check_folders("val_images", self.val_images, self.val_annotations)
        if self.annotations is None and self.val_annotations is not None:
            raise ValueError("val_annotations: expected annotations beside it, got none")
        if self.annotations is not None and self.evaluate_on == "test":
            raise ValueError("evaluate_on: no effect beside annotations; val_annotations names what is evaluated on")


def _check_folders(name: str, folders: str | list[str] | None, annotations: str | list[str] | None) -> None:
    """Refuse a list of folders that is not one for each json."""
    if isinstance(folders, list) and (not isinstance(annotations, list) or len(folders) != len(annotations)):
        raise ValueError(f"{name}: expected one folder, or one for each json, got {len(folders)} folders")


@dataclass(frozen=True, kw_only=True)
class VocSets(Settings):
    """The lists of images of a VOC dataset; without them they are looked for in its folder.

    Args:
        image_sets: the list to train on, or several, as ``VOC2007/trainval``, which is the file
            ``VOC2007/ImageSets/Main/trainval.txt`` in ``root``.
    """

    image_sets: str | list[str] | None = None

    def __post_init__(self) -> None:
        if self.image_sets is not None and not self.image_sets:
            raise ValueError(f"image_sets: expected a list of images or several, got {self.image_sets!r}")


@dataclass(frozen=True, kw_only=True)
class LabelledVocSets(VocSets, Validation):
    """The lists of images of a VOC dataset, to train on and to evaluate on, and what training makes of hard objects.

    Args:
        val_image_sets: the list to evaluate on, or several, as ``VOC2007/test``.
        difficult: what objects to train on that are marked difficult are: use: objects as any other | ignore: neither
            objects nor background | remove: background, as in the released code of Fast R-CNN and R-FCN.
    """

    val_image_sets: str | list[str] | None = None
    difficult: Difficult = "use"

    def __post_init__(self) -> None:
        VocSets.__post_init__(self)
        Validation.__post_init__(self)
        if self.val_image_sets is None:
            if self.image_sets is not None and self.evaluate_on == "test":
                raise ValueError("evaluate_on: no effect beside image_sets; val_image_sets names what is evaluated on")
            return
        if not self.val_image_sets:
            raise ValueError(f"val_image_sets: expected a list of images or several, got {self.val_image_sets!r}")
        if self.image_sets is None:
            raise ValueError("val_image_sets: expected image_sets beside it, got none")
        if self.val_fraction is not None:
            raise ValueError("val_fraction: expected either val_fraction or val_image_sets, got both")
        if self.evaluate_on == "test":
            raise ValueError("evaluate_on: no effect beside val_image_sets, which names what is evaluated on")
