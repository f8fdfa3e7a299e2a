import itertools
import os

import numpy as np
import pytest
from PIL import Image

from visionlab.data.folder import ImageFolder
from visionlab.data.images import ImageError


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.JPG", "b/deep/1.png", "a/9.jpeg", "a/10.jpg", ".hidden/1.jpg", "a/.3.jpg", "top.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(path)
    (tmp_path / "a/notes.txt").write_text("no image")
    return tmp_path


def names(folder, root):
    return [os.path.relpath(file, root) for file in folder.files]


def test_files_are_found_sorted_and_hidden_ones_are_not(tree):
    folder = ImageFolder(root=str(tree))
    assert names(folder, tree) == ["a/10.jpg", "a/9.jpeg", "b/2.JPG", "b/deep/1.png", "top.webp"]
    assert len(folder) == 5
    assert folder.problems == []
    pixels = folder.load(0)
    assert pixels.shape == (3, 4, 3)
    assert pixels.dtype == np.uint8


def test_settings_choose_the_files(tree):
    assert names(ImageFolder(root=str(tree), recursive=False), tree) == ["top.webp"]
    assert names(ImageFolder(root=str(tree), extensions=["png", ".WEBP"]), tree) == ["b/deep/1.png", "top.webp"]
    both = ImageFolder(root=[str(tree / "b"), str(tree / "a")])
    assert names(both, tree) == ["b/2.JPG", "b/deep/1.png", "a/10.jpg", "a/9.jpeg"]


def test_no_file_counts_twice(tree):
    (tree / "b/circle").symlink_to(tree)
    (tree / "b/alias.jpg").symlink_to(tree / "a/10.jpg")
    folder = ImageFolder(root=[str(tree / "b/deep"), str(tree), str(tree / "a")])
    real = [os.path.realpath(file) for file in folder.files]
    assert sorted(os.path.relpath(file, tree) for file in real) == sorted(set(names(ImageFolder(root=str(tree)), tree)))
    assert len(set(real)) == len(real) == 5


def test_list_file(tree):
    (tree / "lists").mkdir()
    lines = ["# a comment", "../b/2.JPG", "", str(tree / "a/10.jpg"), "  ../top.webp", "../b/../b/2.JPG"]
    (tree / "lists/some.txt").write_text("\n".join(lines))
    folder = ImageFolder(list_file=str(tree / "lists/some.txt"))
    assert names(folder, tree) == ["b/2.JPG", "a/10.jpg", "top.webp"]


def test_limit_is_a_fixed_choice_that_grows(tree):
    chosen = [names(ImageFolder(root=str(tree), limit=limit), tree) for limit in (1, 2, 4, 5, 99)]
    assert [len(files) for files in chosen] == [1, 2, 4, 5, 5]
    for small, large in itertools.pairwise(chosen):
        assert set(small) <= set(large)
        assert large == sorted(large)


def test_faulty_files_are_named_and_left_out(tree):
    (tree / "a/empty.jpg").touch()
    (tree / "a/page.jpg").write_text("<html>not found</html>")
    for policy in ("repair", "skip"):
        folder = ImageFolder(root=str(tree / "a"), policy=policy)
        assert names(folder, tree) == ["a/10.jpg", "a/9.jpeg"]
        assert [(os.path.basename(p.file), p.kind) for p in folder.problems] == [
            ("empty.jpg", "unreadable-file"),
            ("page.jpg", "unreadable-file"),
        ]
    with pytest.raises(ValueError, match=r"2 problems .*empty\.jpg: .*the file is empty.*page\.jpg"):
        ImageFolder(root=str(tree / "a"), policy="fail")
    unchecked = ImageFolder(root=str(tree / "a"), check_files=False)
    assert len(unchecked) == 4
    with pytest.raises(ImageError, match=r"empty\.jpg"):
        unchecked.load(2)


def test_listed_file_that_is_missing_is_named(tree):
    (tree / "some.txt").write_text("top.webp\ngone.jpg\n")
    folder = ImageFolder(list_file=str(tree / "some.txt"))
    assert [problem.kind for problem in folder.problems] == ["missing-file"]
    assert "gone.jpg" in str(folder.problems[0])
    assert len(folder) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either root or list_file, got neither"),
        ({"root": "a", "list_file": "b"}, "got both"),
        ({"list_file": "some.txt", "recursive": False}, "no effect"),
        ({"list_file": "nowhere.txt"}, r"nowhere\.txt: expected a text file"),
        ({"root": "nowhere"}, "nowhere: expected a folder of images, got nothing there"),
        ({"root": "text"}, r"text: no images; looked for \.jpg .* found 1 \.txt$"),
        ({"root": "broken"}, "none of 1 files can be read"),
        ({"root": "broken", "limit": 0}, "limit: expected at least 1"),
    ],
)
def test_faulty_settings_are_named(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.jpg").touch()
    with pytest.raises(ValueError, match=message):
        ImageFolder(**settings)


def test_odd_images_load_or_say_why(test_data):
    folder = ImageFolder(root=str(test_data / "odd_images"))
    assert len(folder) + len(folder.problems) == 62
    assert all(folder.load(index).shape[2] == 3 for index in range(len(folder)))
    strict = ImageFolder(root=str(test_data / "odd_images"), policy="skip")
    failed = []
    for index in range(len(strict)):
        try:
            strict.load(index)
        except ImageError as error:
            failed.append(str(error).split(":")[0])
    assert len(failed) == 7
    assert set(failed) < set(strict.files)
