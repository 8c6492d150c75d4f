"""The page and its drawings: self-contained, readable in light and dark, and true to space."""

import re
import tracemalloc
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from matplotlib.colors import to_hex

from dicom_io.volume import Provenance, Volume
from monai_unet_app.metrics.bootstrap import Bootstrap
from monai_unet_app.metrics.case_scores import CaseArrays
from monai_unet_app.metrics.outputs import OVERLAPPING
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.summary import Evaluation
from monai_unet_app.report import case_pictures
from monai_unet_app.report.case_pictures import INVENTED_COLOUR, MISSED_COLOUR, case_figure, error_colours, png
from monai_unet_app.report.charts import LIGHT
from monai_unet_app.report.evaluation_report import CasePicture, EvaluationReport, MeasuredOn, Target
from monai_unet_app.report.html import page as page_of
from monai_unet_app.report.sections import conclusion, sections

ON = MeasuredOn("lobes <3d>", "1.2.0", "ab" * 32, "Phantoms & co", "cd" * 32, "test")
PLAN = EvaluationPlan(("Front", "Back"))
SPACING = (1.0, 1.5, 3.0)


def labels_moved_by(shift):
    labels = np.zeros((20, 18, 12), np.uint8)
    labels[4 + shift : 8 + shift, 4:10, 3:8] = 1
    labels[8 + shift : 13 + shift, 4:10, 3:8] = 2
    return labels


def case(n, before=True):
    truth, predicted = labels_moved_by(0), labels_moved_by(n % 3)
    onehot = np.arange(3).reshape(-1, 1, 1, 1) == predicted
    after, earlier = np.where(onehot, 0.9, 0.05), np.where(onehot, 0.98, 0.01)
    return CaseArrays(f"case_{n}", f"s{n}", truth, predicted, after, SPACING, 0.0045, earlier if before else None)


@cache
def twelve_cases(before):
    evaluation = Evaluation(PLAN)
    for n in range(12):
        evaluation.add(case(n, before))
    return evaluation


def report(before=True, targets=(), pictures=True):
    image = np.random.default_rng(0).random((20, 18, 12))
    shown = [CasePicture("case_2", "worst", image, labels_moved_by(0), labels_moved_by(2), SPACING)]
    return EvaluationReport(
        twelve_cases(before), ON, pictures=shown if pictures else (), targets=targets, how=Bootstrap(resamples=20)
    )


TARGETS = (Target("Dice", ("dice", "mean"), at_least=0.99), Target("ECE", ("ece", "top_label"), at_most=0.5))


@pytest.fixture(scope="module")
def page():
    return page_of("Evaluation", sections(report(targets=TARGETS)))


class Elements(HTMLParser):
    """Start tags with their attributes, and a check that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_asks_nothing_of_any_network_and_runs_nothing(page):
    spoken = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"https?:|//|@import|<script|<link|<iframe|javascript:", spoken)
    for tag, attributes in Elements(page).found:
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("xlink:href", "#").startswith("#")
    assert "default-src 'none'" in page


def test_the_page_is_well_formed_and_its_drawings_find_their_parts(page):
    elements = Elements(page)
    assert elements.open == []
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(names) == len(set(names))
    referred = set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', page))
    assert {a or b for a, b in referred} == set(names)


def test_the_conclusion_comes_first_and_says_what_was_missed(page):
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    assert text.index("1 of 2 targets missed") < text.index("Each class")
    assert "✗ missed" in text
    assert "✓ reached" in text
    assert conclusion(report(targets=TARGETS[1:] * 2, pictures=False)).text == "All 2 targets are reached"
    assert conclusion(report(pictures=False)).text.startswith("Mean Dice 0.")


def test_a_target_without_a_figure_is_neither_reached_nor_missed():
    unknown = Target("something else", ("else", "mean"), at_least=0.5)
    said = conclusion(report(targets=(*TARGETS, unknown), pictures=False))
    assert (said.text, said.tone) == ("1 of 3 targets missed, 1 not defined", "bad")
    said = conclusion(report(targets=(TARGETS[1], unknown), pictures=False))
    assert (said.text, said.tone) == ("1 of 2 targets reached, 1 not defined", "")


def test_names_are_escaped_and_no_path_is_told(page):
    assert "lobes &lt;3d&gt;" in page
    assert "Phantoms &amp; co" in page
    assert "<3d>" not in page
    assert not re.search(r"/(home|tmp|work|usr|Users)/", re.sub(r"base64,[^\"]+", "", page))


def test_every_colour_of_the_page_is_defined_in_light_in_dark_and_on_paper(page):
    used = set(re.findall(r"var\(--(\w+)\)", page)) - {"sans"}
    blocks = re.findall(r":root\s*\{(.*?)\}", page, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert used <= set(re.findall(r"--(\w+):", block))
    assert "#010a0" not in page  # a placeholder that was not turned into a variable


def luminance(colour):
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_curves_stand_out_from_the_ground_in_both_themes():
    # WCAG 2.2, 1.4.3: a contrast of 4.5 for text.
    style = (files("monai_unet_app.report") / "report.css").read_text()
    for block in re.findall(r":root\s*\{(.*?)\}", style, flags=re.DOTALL)[:2]:
        colour = dict(re.findall(r"--(\w+):\s*(#\w{6})", block))
        for name in ("ink", "muted", "first", "second", "good", "bad"):
            for ground in ("ground", "raised"):
                light, dark = sorted((luminance(colour[name]), luminance(colour[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def test_the_palette_for_viewing_is_that_of_the_page():
    style = (files("monai_unet_app.report") / "report.css").read_text()
    light, *_ = re.findall(r":root\s*\{(.*?)\}", style, flags=re.DOTALL)
    colour = dict(re.findall(r"--(\w+):\s*(#\w{6})", light))
    assert {name: colour[name] for name in vars(LIGHT)} == vars(LIGHT)


def test_calibration_before_and_after_stand_beside_each_other_where_both_were_measured(page):
    assert "before calibration" in page
    assert "before calibration" not in page_of("", sections(report(before=False, pictures=False)))


def test_a_page_of_forty_classes_says_how_many_it_draws():
    plan = EvaluationPlan(tuple(f"Organ {n}" for n in range(40)), outputs=OVERLAPPING)
    truth = np.random.default_rng(0).random((40, 6, 5, 4)) > 0.5
    evaluation = Evaluation(plan)
    evaluation.add(CaseArrays("a", "s", truth, truth, np.where(truth, 0.8, 0.2), (1, 1, 1), 0.001))
    page = page_of("", sections(EvaluationReport(evaluation, ON, how=Bootstrap(resamples=5))))
    assert page.count("The first 24 of 40 classes are drawn.") == 2  # of both charts with a part for each class
    assert page.count("<td>Organ ") == 3 * 40  # scores, outlines, parts


# --- pictures


def lopsided_patient():
    """An image on axes left, back, head: one bright voxel far left, a little to the front, near the head."""
    image = np.zeros((20, 16, 12))
    image[17, 5, 9] = 1.0
    return image, image > 0


@pytest.mark.parametrize(
    ("axes", "order", "flip"),
    [
        (("L", "P", "S"), (0, 1, 2), (1, 1, 1)),
        (("R", "A", "S"), (0, 1, 2), (-1, -1, 1)),
        (("P", "I", "R"), (1, 2, 0), (1, -1, -1)),
    ],
)
def test_planes_are_drawn_as_radiologists_look_at_them_however_the_array_is_stored(axes, order, flip):
    image, mask = lopsided_patient()
    spacing = (1.0, 1.5, 3.0)
    turn = tuple(slice(None, None, step) for step in flip)
    stored = [array.transpose(order)[turn] for array in (image, mask.astype(np.uint8))]
    picture = CasePicture("a", "worst", stored[0], stored[1], stored[1], tuple(spacing[n] for n in order), axes)
    figure = case_figure(picture, ("Spot",))
    place = {}
    for axis in figure.axes:
        shown = axis.images[0].get_array()
        row, column = np.unravel_index(np.asarray(shown).argmax(), shown.shape)
        place[axis.get_title(loc="left")] = (row / (shown.shape[0] - 1), column / (shown.shape[1] - 1))
    assert set(place) == {"axial", "coronal", "sagittal"}
    down, right = place["axial"]
    assert right > 0.5 > down  # the patient's left on the right, front on top
    down, right = place["coronal"]
    assert right > 0.5 > down  # left on the right, head on top
    down, right = place["sagittal"]
    assert max(down, right) < 0.5  # front on the left, head on top
    letters = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert {"L", "R", "A", "P", "S", "I"} <= letters


def test_planes_keep_the_proportions_of_the_body_at_one_scale():
    labels = np.zeros((30, 20, 10), np.uint8)
    labels[12:15, 9:11, 4:6] = 1
    spacing = (0.7, 1.5, 4.0)
    picture = CasePicture("a", "best", labels.astype(float), labels, labels, spacing)
    figure = case_figure(picture, ("Box",))
    width, height = figure.get_size_inches()
    scales = []
    for axis in figure.axes:
        box, (rows, columns) = axis.get_position(), axis.images[0].get_array().shape[:2]
        right, down = {"plane I-J": (0, 1), "plane I-K": (0, 2), "plane J-K": (1, 2)}[axis.get_title(loc="left")]
        scales += [
            columns * spacing[right] / (box.width * width),
            rows * spacing[down] / (box.height * height),
        ]
    assert scales == pytest.approx([scales[0]] * 6)


def test_class_numbers_and_a_mask_for_each_class_are_drawn_alike():
    labels = np.zeros((30, 20, 10), np.uint8)
    labels[5:15, 4:11, 2:6], labels[15:20, 8:12, 3:9] = 1, 2
    moved = np.roll(labels, 1, 0)
    pictures = []
    for truth, predicted in ((labels, moved), [np.stack([one == 1, one == 2]) for one in (labels, moved)]):
        shown = CasePicture("a", "best", labels.astype(float), truth, predicted, SPACING, ("R", "P", "S"))
        pictures.append(png(case_figure(shown, PLAN.class_names, errors=True)))
    assert pictures[0] == pictures[1]


def test_masks_are_made_of_the_planes_alone():
    names = tuple(f"c{n}" for n in range(100))
    labels = np.random.default_rng(0).integers(0, 101, (48, 40, 36)).astype(np.uint8)
    picture = CasePicture("a", "best", np.zeros(labels.shape, np.float32), labels, labels, SPACING)
    tracemalloc.start()
    planes = case_pictures._planes(picture, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(planes) == 3
    assert peak < 30 * labels.size  # masks of the volume would take 200 bytes a voxel


def test_a_contour_runs_midway_between_the_voxels_inside_and_outside():
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[10:20, 8:16, 6:12] = 1
    spacing = (1.0, 2.0, 3.0)
    picture = CasePicture("a", "best", labels.astype(float), labels, labels, spacing)
    axis = case_figure(picture, ("Box",)).axes[0]
    shown = np.asarray(axis.images[0].get_array())
    lit_rows, lit_columns = (np.flatnonzero(shown.max(axis=n) > 0) for n in (1, 0))
    points = np.concatenate([path.vertices for line in axis.collections for path in line.get_paths()])
    assert points[:, 0].min() == pytest.approx(lit_columns[0] * spacing[0])
    assert points[:, 0].max() == pytest.approx((lit_columns[-1] + 1) * spacing[0])
    assert points[:, 1].min() == pytest.approx(lit_rows[0] * spacing[1])
    assert points[:, 1].max() == pytest.approx((lit_rows[-1] + 1) * spacing[1])


def test_of_a_tilted_stack_only_its_own_slices_are_drawn():
    labels = np.zeros((30, 24, 20), np.uint8)
    labels[10:20, 8:16, 6:12] = 1
    labels[9:21, 8:16, 8] = 1
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 1.0  # slices shifted sideways in even steps: 18 degrees
    volume = Volume(labels.astype(np.float32), affine, Provenance("array"))
    figure = case_figure(CasePicture.of("a", "best", volume, labels, labels), ("Box",))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["axial"] * 3
    areas = [int((np.asarray(axis.images[0].get_array()) > 0.5).sum()) for axis in figure.axes]
    assert areas == [10 * 8, 12 * 8, 10 * 8]
    square = Volume(labels.astype(np.float32), np.diag([1.0, 1.0, 3.0, 1.0]), Provenance("array"))
    figure = case_figure(CasePicture.of("a", "best", square, labels, labels), ("Box",))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["axial", "coronal", "sagittal"]


def test_a_legend_names_the_classes_in_the_colours_of_their_outlines():
    labels = labels_moved_by(0)
    picture = CasePicture("a", "best", labels.astype(float), np.zeros_like(labels), labels, SPACING)
    plain, named = (case_figure(picture, PLAN.class_names, ("#e69f00", "#009e73"), legend=on) for on in (False, True))
    assert plain.texts == []
    assert [
        (mark.get_color(), name.get_text()) for mark, name in zip(named.texts[::2], named.texts[1::2], strict=True)
    ] == [
        ("#e69f00", "Front"),
        ("#009e73", "Back"),
    ]
    drawn = {to_hex(line.get_edgecolor()[0]) for axis in named.axes for line in axis.collections}
    assert drawn == {"#e69f00", "#009e73"}
    assert named.get_size_inches()[1] > plain.get_size_inches()[1]
    lowest = min(axis.get_position().y0 for axis in named.axes)
    assert all(text.get_position()[1] < lowest for text in named.texts)


def test_a_planar_colour_image_is_shown_upright_beside_its_outlines():
    image = np.zeros((30, 20, 1, 3), np.uint8)
    image[25, 3] = (255, 0, 0)  # far right, near the top
    labels = np.zeros((30, 20), np.uint8)
    labels[5:25, 3:6] = 1
    figure = case_figure(CasePicture("a", "best", image, labels, labels, (1, 1), unit="px"), ("Vessel",))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["image", "outlines"]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == (20, 30, 3)
    assert shown[3, 25].tolist() == [1, 0, 0]
    assert len(figure.axes[0].collections) == 0
    assert len(figure.axes[1].collections) == 2


def test_every_kind_of_error_has_a_colour_of_its_own():
    truth = np.array([[0, 1, 1, 1, 2, 0]])
    predicted = np.array([[0, 1, 0, 2, 1, 2]])
    colours = error_colours(*(np.stack([labels == 1, labels == 2]) for labels in (truth, predicted)))
    right, found, missed, confused, other, invented = colours[0]
    assert right[3] == found[3] == 0
    assert to_hex(missed) == MISSED_COLOUR
    assert to_hex(invented) == INVENTED_COLOUR
    assert to_hex(confused) == to_hex(other)
    assert len({MISSED_COLOUR, INVENTED_COLOUR, to_hex(confused)}) == 3


def test_errors_are_shown_where_they_are_below_each_plane_at_the_same_scale():
    image, mask = lopsided_patient()
    missed = mask.astype(np.uint8)
    picture = CasePicture("a", "worst", image, missed, np.zeros_like(missed), (1.0, 1.5, 3.0), ("L", "P", "S"))
    figure = case_figure(picture, ("Spot",), errors=True)
    plain, maps = figure.axes[:3], figure.axes[3:]
    assert [axis.get_title(loc="left") for axis in maps] == ["errors, axial", "errors, coronal", "errors, sagittal"]
    for above, below in zip(plain, maps, strict=True):
        shown, (grey, wrong) = above.images[0].get_array(), (drawn.get_array() for drawn in below.images)
        place = np.unravel_index(np.asarray(shown).argmax(), shown.shape)
        assert np.argwhere(np.asarray(wrong)[..., 3] > 0).tolist() == [list(place)]
        assert to_hex(wrong[place]) == MISSED_COLOUR
        assert np.asarray(grey).max() < np.asarray(shown).max()
        first, second = above.get_position(), below.get_position()
        assert (first.x0, first.width, first.height) == pytest.approx((second.x0, second.width, second.height))
        assert second.y1 < first.y0


def test_errors_of_a_planar_image_stand_beside_its_outlines():
    labels = np.zeros((30, 20), np.uint8)
    labels[5:25, 3:6] = 1
    colour = np.full((30, 20, 1, 3), 200, np.uint8)
    figure = case_figure(CasePicture("a", "best", colour, labels, labels, (1, 1), unit="px"), ("Vessel",), errors=True)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["image", "outlines", "errors"]
    assert len({axis.get_position().y0 for axis in figure.axes}) == 1
    assert not np.asarray(figure.axes[2].images[1].get_array()).any()


def test_a_picture_without_any_label_is_still_drawn():
    none = np.zeros((8, 7, 6), np.uint8)
    figure = case_figure(CasePicture("a", "worst", np.ones((8, 7, 6)), none, none, (1, 1, 1)), PLAN.class_names)
    assert len(figure.axes) == 3


def test_axes_that_name_a_direction_twice_are_refused():
    labels = labels_moved_by(0)
    picture = CasePicture("a", "worst", labels, labels, labels, SPACING, ("L", "R", "S"))
    with pytest.raises(ValueError, match="one letter each"):
        case_figure(picture, PLAN.class_names)
