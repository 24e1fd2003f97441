"""Pictures of characters: which faces are used, the split by family, repeatability, messages.

The fonts are those that matplotlib brings.
"""

import csv
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from cka_probe.distill.data import characters, fonts, glyphs, make_glyphs

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LETTERS = "ABQabgq012"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs")
    lines = make_glyphs(folder, fonts=[FONTS], characters=LETTERS, size=16, pictures=2, progress=False)
    return folder, lines


def arrays(folder, part):
    with np.load(folder / f"{part}.npz") as file:
        return dict(file)


def test_every_face_is_used_or_has_a_reason(drawn):
    folder, lines = drawn
    files = {path.name for path in FONTS.glob("*.ttf")}
    assert {Path(line["file"]).name for line in lines} == files
    assert all(bool(line["part"]) != bool(line["reason"]) for line in lines)
    reasons = {Path(line["file"]).name: line["reason"] for line in lines}
    assert reasons["DejaVuSans.ttf"] == ""
    assert reasons["STIXSizOneSymReg.ttf"].startswith("it lacks 'A'")
    with (folder / "fonts.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == lines


def test_no_family_is_in_both_parts(drawn):
    folder, lines = drawn
    parts = {}
    for line in lines:
        if line["part"]:
            parts.setdefault(line["family"].split()[0], set()).add(line["part"])
    assert {len(found) for found in parts.values()} == {1}
    assert {part for found in parts.values() for part in found} == {"train", "test"}
    pictures = {part: {image.tobytes() for image in arrays(folder, part)["images"]} for part in ("train", "test")}
    assert not pictures["train"] & pictures["test"]


def test_pictures_are_the_characters_of_the_faces(drawn):
    folder, lines = drawn
    found = arrays(folder, "train")
    faces = [line for line in lines if line["part"] == "train"]
    assert found["images"].shape == (len(faces) * len(LETTERS) * 2, 16, 16)
    assert found["images"].dtype == np.uint8
    assert [chr(code) for code in found["characters"]] == list(LETTERS)
    # Turned and moved by little: each picture is most like the upright picture of its own label and face.
    face = fonts.Face(Path(faces[0]["file"]), 0, faces[0]["family"], faces[0]["style"])
    upright = np.stack([fonts.draw(face, character, 16, None) for character in LETTERS]).astype(float)
    own = found["faces"] == 0
    right = 0
    for image, label in zip(found["images"][own].astype(float), found["labels"][own], strict=True):
        shifted = [np.roll(image, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        fit = [max(np.corrcoef(part.ravel(), other.ravel())[0, 1] for part in shifted) for other in upright]
        right += int(np.argmax(fit)) == label
    assert right >= 0.9 * own.sum()


def test_pictures_have_room_around_them_and_a_size_of_their_own():
    face = next(fonts.faces_of([FONTS / "DejaVuSans.ttf"]))
    heights = {}
    for character in characters.CHARACTERS:
        rows = np.flatnonzero(fonts.draw(face, character, 32, None).max(1) > 127)
        heights[character] = int(rows[-1] - rows[0] + 1)
        assert 0 < rows[0] <= rows[-1] < 31
    assert heights["H"] == pytest.approx(0.56 * 32, abs=1)
    assert heights["C"] > heights["c"] + 3  # c is no small C in a frame of its own
    for seed in range(10):
        picture = fonts.draw(face, "W", 32, seed)
        assert max(picture[[0, -1]].max(), picture[:, [0, -1]].max()) < 128


def test_the_same_seed_draws_the_same_and_a_further_font_changes_nothing(drawn, tmp_path):
    folder, lines = drawn
    again = make_glyphs(tmp_path / "a", fonts=[FONTS], characters=LETTERS, size=16, pictures=2, progress=False)
    assert again == lines
    for part in ("train", "test"):
        first, second = arrays(folder, part), arrays(tmp_path / "a", part)
        assert all(np.array_equal(first[name], second[name]) for name in first)
    for name in ("DejaVuSans.ttf", "cmr10.ttf", "STIXGeneral.ttf"):
        (tmp_path / "few").mkdir(exist_ok=True)
        shutil.copy(FONTS / name, tmp_path / "few" / name)
    make_glyphs(tmp_path / "b", fonts=[tmp_path / "few"], characters=LETTERS, size=16, pictures=2, progress=False)
    few = {image.tobytes() for part in ("train", "test") for image in arrays(tmp_path / "b", part)["images"]}
    many = {image.tobytes() for part in ("train", "test") for image in arrays(folder, part)["images"]}
    assert few <= many
    other = make_glyphs(tmp_path / "c", fonts=[tmp_path / "few"], characters=LETTERS, size=16, seed=1, progress=False)
    assert len([line for line in other if line["part"]]) == 3
    assert not {image.tobytes() for image in arrays(tmp_path / "c", "train")["images"]} & many


def test_a_sheet_to_look_at(drawn):
    with Image.open(drawn[0] / "sheet.png") as sheet:
        assert sheet.size[0] == 16 * len(LETTERS)
        assert np.asarray(sheet).max() == 255


def test_copies_and_capitals_are_left_out(tmp_path):
    for name in ("DejaVuSans.ttf", "cmr10.ttf"):
        shutil.copy(FONTS / name, tmp_path / name)
    shutil.copy(FONTS / "cmr10.ttf", tmp_path / "copy.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    lines = make_glyphs(tmp_path / "out", fonts=[tmp_path], characters=LETTERS, size=16, progress=False)
    assert [(Path(line["file"]).name, line["reason"]) for line in lines] == [
        ("DejaVuSans.ttf", ""),
        ("cmr10.ttf", ""),
        ("copy.ttf", "the same pictures as cmr10 Regular"),
    ]
    face = next(fonts.faces_of([FONTS / "DejaVuSans.ttf"]))
    assert fonts.problem_of(face, "AB\U0001f9ff") == "it lacks '\U0001f9ff'"
    assert fonts.problem_of(face._replace(family="Some Dingbats"), "AB") == "a font of signs"
    assert fonts.problem_of(face, "AB ") == "it lacks ' '"


def test_two_names_of_one_design_count_as_one_family():
    """DejaVu Sans is twice there, the second time under another name and one pixel thinner."""
    sans, roman = (next(fonts.faces_of([FONTS / name])) for name in ("DejaVuSans.ttf", "cmr10.ttf"))
    upright = {
        face: np.stack([fonts.draw(face, character, 32, None) for character in LETTERS]) for face in (sans, roman)
    }
    copy = upright[sans].copy()
    copy[:, 20] //= 2
    found = characters._groups({**upright, sans._replace(family="Aardvark Grotesque"): copy})
    assert list(found.values()) == ["aardvark", "cmr10", "aardvark"]
    styles = {
        sans._replace(family=name): upright[sans] * number for number, name in ((1, "OCRA"), (0, "OCRACondensed"))
    }
    assert set(characters._groups(styles).values()) == {"ocra"}


def test_glyphs_are_read_as_pairs(drawn):
    folder, lines = drawn
    train, test = glyphs(folder)
    assert train.classes == list(LETTERS)
    counts = [sum(line["part"] == part for line in lines) * len(LETTERS) * 2 for part in ("train", "test")]
    assert [len(train), len(test)] == counts
    image, label = train[0]
    assert image.shape == (3, 16, 16)
    assert (image.dtype, label.dtype) == (torch.float32, torch.int64)
    whole = torch.stack([image for image, _ in train]).double()
    assert float(whole.mean()) == pytest.approx(0, abs=1e-4)
    assert float(whole.std()) == pytest.approx(1, abs=1e-3)
    assert glyphs(folder, channels=1)[0][0][0].shape == (1, 16, 16)
    torch.manual_seed(0)
    changed = glyphs(folder, augment=True)[0]
    assert len({changed[0][0].numpy().tobytes() for _ in range(20)}) > 3


def test_validation_pictures_are_of_families_that_training_does_not_have(drawn):
    folder, _ = drawn
    stored = arrays(folder, "train")
    group = {image.tobytes(): int(number) for image, number in zip(stored["images"], stored["groups"], strict=True)}

    def groups(part):
        return {group[image.numpy().tobytes()] for image in part.images}

    for seed in range(3):
        train, validation = glyphs(folder, seed=seed, validation_per_class=2)
        assert torch.bincount(validation.labels).tolist() == [2] * len(LETTERS)
        assert not groups(train) & groups(validation)
        few, same = glyphs(folder, seed=seed, train_per_class=2, validation_per_class=2)
        assert torch.equal(same.images, validation.images)
        assert torch.bincount(few.labels).tolist() == [2] * len(LETTERS)
        assert groups(few) <= groups(train)
    with pytest.raises(
        ValueError, match=r"too few for train_per_class=1000 and validation_per_class=0 of other families"
    ):
        glyphs(folder, train_per_class=1000)


def test_glyphs_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"There is no train\.npz in .*make_glyphs\('.*'\) draws it"):
        glyphs(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"The folder of fonts '.*nowhere' does not exist"):
        make_glyphs(tmp_path, fonts=[tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"holds no font files \(.*\.otf"):
        make_glyphs(tmp_path, fonts=[tmp_path])
    shutil.copy(FONTS / "DejaVuSans.ttf", tmp_path / "one.ttf")
    with pytest.raises(ValueError, match=r"two or more families are needed.*of 1 faces 1 of 1 families can be used"):
        make_glyphs(tmp_path / "out", fonts=[tmp_path], characters="AB", progress=False)
    with pytest.raises(ValueError, match="`characters` must be a text of two or more different characters, got 'AA'"):
        make_glyphs(tmp_path, characters="AA")
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(FileNotFoundError, match=r"fontconfig is not installed.*apt-get install fontconfig"):
        make_glyphs(tmp_path)


@pytest.mark.skipif(shutil.which("fc-list") is None, reason="needs fontconfig")
def test_fontconfig_knows_the_fonts_of_the_machine():
    try:
        files = fonts.font_files()
    except FileNotFoundError:
        pytest.skip("this machine has no fonts")
    assert all(path.is_file() for path in files)
