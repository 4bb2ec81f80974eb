"""The command line: streams, exit codes, one JSON document, files written, nothing lost and nothing heavy loaded."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cliploc import __version__
from cliploc import options as config
from cliploc.cli.commands import LISTED, NAMES, SECTIONS, command_of
from cliploc.cli.photos import PhotoRun
from cliploc.cli.terminal import Terminal
from cliploc.draw import overlay
from cliploc.errors import ModelError
from cliploc.formats import exports
from cliploc.localizer import Localizer
from cliploc.methods import methods
from cliploc.refine import refinements
from cliploc.runs.picture_files import find_pictures
from cliploc.towers import guides, models
from tests.commands import CAT, COFFEE, check_refusal, cliploc_, python, refused, succeeded

FAST = ("--recipe", "fast")  # sees a picture once, the default ten times


# ------------------------------------------------------------------------------------------------- light at the start
HELP_NEEDS_NOT = {"torch", "torchvision", "timm", "numpy", "cv2", "PIL", "supervision"}
# What a first result does without, as it is imported where it is needed.
LOCALIZE_NEEDS_NOT = {
    "torchvision", "timm", "scipy", "pandas", "pyarrow", "matplotlib", "supervision", "sklearn", "skimage",
    "transformers", "open_clip", "kornia", "ray", "starlette", "jinja2", "sympy",
}  # fmt: skip


def imported(*arguments: object) -> set[str]:
    """The modules that a run of Python imports."""
    report = python("-X", "importtime", *arguments).stderr
    return {line.rsplit("|", 1)[1].strip() for line in report.splitlines() if line.count("|") == 2}


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import cliploc"),
        ("-m", "cliploc", "--help"),
        ("-m", "cliploc", "localize", "--help"),
        ("-m", "cliploc", "localize", CAT, "-p", "cat", *FAST),
    ],
    ids=["import", "help", "help of a command", "localize"],
)
def test_nothing_is_imported_before_it_is_needed(arguments):
    modules = imported(*arguments)
    assert "cliploc" in modules
    others = {name.partition(".")[0] for name in modules}
    assert not others & (LOCALIZE_NEEDS_NOT if CAT in arguments else HELP_NEEDS_NOT)
    assert "importlib.metadata" not in modules or CAT in arguments


WITHOUT_TORCH = """
import json, sys
from cliploc.cli import main

codes = [main(words) for words in json.load(sys.stdin)]
heavy = [name for name in ("torch", "open_clip", "timm", "cliploc.localizer") if name in sys.modules]
print(json.dumps([codes, heavy]))
"""
BENCHMARK = ["benchmark", "boxes", "--root", "y", "--out", "z", "--dataset"]
# One for each registry, and for each command that has its own way to it: the command, and what its line names.
REFUSED = [
    (["localize", CAT, "-p", "cat", "--model", "RN500"], "model 'RN500': did you mean RN50 or "),
    (["localize", CAT, "-p", "cat", "--model", "hub:x/y"], "'hub': did you mean hf-hub"),
    (["localize", CAT, "-p", "cat", "--method", "cam+gemm"], "method 'gemm': did you mean gem"),
    (["localize", CAT, "-p", "cat", "--method", "cam,gem"], "'cam,gem'"),
    (["localize", CAT, "-p", "cat", "--method", "cam", "--method", "gem"], "--method once, got it 2 times"),
    (["localize", CAT, "-p", "cat", "--refine", "caa,guide"], "refinement 'guide': did you mean guided"),
    (["localize", CAT, "-p", "cat", "--device", "toaster"], "'toaster'"),
    (["classify", CAT, "--model", "openai/clip-vit"], "--model hf-hub:openai/clip-vit"),
    (["annotate", "photos", "-p", "cat", "--out", "y", "--method", "camm"], "method 'camm'"),
    (["annotate", "photos", "-p", "cat", "--out", "y", "--format", "kokko"], "export 'kokko'"),
    ([*BENCHMARK, "x", "--model", "mini", "--model", "m"], "model 'm'"),
    ([*BENCHMARK, "x", "--method", "cam,camm"], "method 'camm'"),
    ([*BENCHMARK, "vocc"], "dataset 'vocc': did you mean voc"),
    (["train", "tscam", "--root", "x", "--out", "y", "--model", "minni"], "model 'minni'"),
    (["serve", "--model", "mini", "--model", "minni"], "model 'minni': did you mean mini"),
    (["models", "minni"], "model 'minni': did you mean mini"),
    (["methods", "gard-cam"], "method 'gard-cam': did you mean grad_cam"),
]


def test_unknown_names_are_refused_before_torch_is_imported(tmp_path):
    commands = [[str(word) for word in words] for words, _ in REFUSED]
    ran = python("-c", WITHOUT_TORCH, input=json.dumps(commands), cwd=tmp_path)
    assert json.loads(ran.stdout) == [[2] * len(REFUSED), []]
    assert not [*tmp_path.iterdir()]
    for line, (_, names) in zip(ran.stderr.splitlines(), REFUSED, strict=True):
        check_refusal(line, *([] if "cliploc[web]" in line else [names]))


def test_version_and_help():
    assert cliploc_("--version").out == f"cliploc {__version__}\n"
    for arguments in ([], ["--help"]):
        result = succeeded(*arguments)
        for command in ("localize", "segment", "compare", "classify", "demo", "models", "methods"):
            assert re.search(rf"^  {command} ", result.out, re.MULTILINE)
    assert "--min-presence" in cliploc_("localize", "--help").out


def test_every_command_line_of_the_documents_has_options_that_exist():
    root = Path(__file__).parents[2]
    tasks = [f"{name} {task}" for name in ("benchmark", "evaluate") for task in command_of(name).commands]
    known = {name: set(re.findall(r"--[a-z-]+", cliploc_(*name.split(), "--help").out)) for name in [*tasks, *NAMES]}
    seen = set()
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, words in re.findall(rf"^[ $]*(?:`)?cliploc ({'|'.join(known)}) (.*)$", text, re.MULTILINE):
            seen.add(command)
            unknown = set(re.findall(r"(?<!\S)--[a-z-]+", re.split(r" [#→] |  +", words)[0])) - known[command]
            assert not unknown, (page.name, command, unknown)
    assert len(seen) > 12


def sections_of(command: str) -> dict[str, list[str]]:
    """The sections of a command's help, each with its flags."""
    parts = re.split(r"^(\S.*):$", cliploc_(*command.split(), "--help").out, flags=re.MULTILINE)
    flags = [re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE) for text in parts[2::2]]
    return dict(zip(parts[1::2], flags, strict=True))


@pytest.mark.parametrize("command", ["localize", "compare", "benchmark boxes", "annotate"])
def test_help_has_every_option_of_the_localizer_in_sections(command):
    sections = sections_of(command)
    assert list(sections) == [title for title in SECTIONS if title in sections]
    flags = [flag for section in sections.values() for flag in section]
    assert len(flags) == len(set(flags))
    assert flags[-2:] == ["--debug", "--help"]
    wanted = [name for name, one in config.OPTIONS.items() if not one.python_only]
    if command not in ("localize", "compare"):
        wanted.remove("text_cache")
    if command in ("compare", "benchmark boxes"):
        wanted.remove("masks_by")  # they draw no masks
    if command == "compare":
        wanted.remove("recipe")  # a method is named
    assert {config.flags_of(name)[0].partition("/")[0] for name in wanted} <= set(flags)
    if command == "localize":
        usual = [flag for title, section in sections.items() if not title.startswith("More") for flag in section]
        assert len(usual) == 10
        for title, flag in (("More: view", "--scales"), ("Boxes", "--threshold"), ("Output", "--json")):
            assert flag in sections[title]
    lines = cliploc_(*command.split(), "--help").out.splitlines()
    assert all(len(line) <= 80 or line.startswith("  Example: ") for line in lines), "commands stay whole, to be copied"


@pytest.mark.parametrize("command", ["compare", "explain", "segment"])
def test_help_of_commands_without_recipes_tells_no_default_of_one(command):
    words = " ".join(cliploc_(command, "--help").out.split())
    assert "--scales" not in words or "multiples of the input size. [default: 1]" in words
    assert "recipe's;" not in words


def test_commands_are_listed_with_the_first_line_of_their_help():
    listed = {name: about for commands in LISTED.values() for name, about in commands.items()}
    assert list(listed) == NAMES
    for name, about in listed.items():
        assert " ".join(command_of(name).help.split("\n\n")[0].split()) == about


# -------------------------------------------------------------------------------------------------------------- lists
def test_every_method_is_listed_with_what_is_known_of_it():
    lines = cliploc_("methods").out.splitlines()
    assert lines[0].split() == ["name", "title", "family", "towers", "options", "paper"]
    assert [line.split()[0] for line in lines[1:]] == methods.names()
    for method, line in zip(methods, lines[1:], strict=True):
        assert method.title in line
        assert method.paper in line
        assert method.family in line
        for option in method.options:
            assert f"{option}=" in line


def test_help_names_every_refinement_and_format():
    said = " ".join(cliploc_("annotate", "--help").out.split())
    assert f"Refinements after the method: {', '.join(sorted(refinements.names()))}." in said
    assert f"Output formats: {', '.join(sorted(exports.names()))}." in said


def test_every_model_is_listed_with_what_is_known_of_it():
    table, legend, of_guides = cliploc_("models").out.split("\n\n")
    lines = table.splitlines()
    titles = ["name", "tower", "input", "parameters", "licence", "methods", "about", "weights"]
    assert lines[0].split() == titles
    assert [line.split()[0] for line in lines[1:]] == models.names()
    cells = {line.split()[0]: dict(zip(titles, re.split(r" {2,}", line), strict=True)) for line in lines[1:]}
    assert cells["mini"] | {"about": ""} == {
        "name": "mini", "tower": "cnn", "input": "224×224", "parameters": "4.7 M", "licence": "Apache-2.0",
        "methods": f"{sum('cnn' in m.towers for m in methods)} of cnn", "about": "", "weights": "–",
    }  # fmt: skip
    assert cells["RN50"]["weights"].split(" · ") == list(models.get("RN50").weights)
    assert cells["swin_base_patch4_window7_224"]["methods"] == "none"
    assert re.split(r" {2,}", legend.splitlines()[-1]) == ["only with --guide", "corrclip · gla_clip · proxyclip"]
    assert [line.split()[0] for line in of_guides.splitlines()[1:]] == [one.name for one in guides]


def test_a_part_of_a_name_lists_those_models():
    result = succeeded("models", "rn50")
    table, _ = result.out.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == [n for n in models.names() if "RN50" in n]
    err = refused("models", "vitb16")
    assert "did you mean ViT-B-16" in err
    assert err.endswith(f"there are {len(models.names())}, listed by: cliploc models\n")


@pytest.mark.parametrize(
    "words",
    [
        ["benchmark", "boxes", "--dataset", "wsol", "--root=~/root", "--out=~/out", "--head=~/there"],
        ["annotate", "demo:", "--labels=~/there", "--out", "drafts"],
        *(["localize", CAT, "-p", "cat", f"--{name}=~/there.json"] for name in ("calibration", "learnt")),
    ],
)
def test_home_is_read_in_every_path(words, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path / 'there'}" in refused(*words)
    assert not (tmp_path / "~").exists()


def test_all_about_one_model():
    lines = cliploc_("models", "RN50").out.split("\n\n")[0].splitlines()
    about = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    assert about["name"] == "RN50"
    assert about["tower"] == "cnn: CLIP's ResNet"
    assert about["weights"] == "--pretrained openai · yfcc15m · cc12m"
    assert about["preprocessing"] == "crop, bicubic, mean 0.481 0.458 0.408, std 0.269 0.261 0.276"
    assert about["methods"].split(" · ") == [m.name for m in methods if "cnn" in m.towers]
    assert "RN50x4" in cliploc_("models", "RN50").out.split("see also")[1]


# ----------------------------------------------------------------------------------------------------------- localize
def test_lines_say_what_json_says():
    text = cliploc_("localize", CAT, "-p", "cat", "-p", "pizza", *FAST)
    document = json.loads(cliploc_("localize", CAT, "-p", "cat", "-p", "pizza", "--json", *FAST).out)
    cat, pizza = document["pictures"][0]["names"]
    first, *rest = text.out.splitlines()
    assert first == f"{CAT}  451×300"
    box = " ".join(f"{value:.0f}" for value in cat["boxes"][0]["xyxy"])
    assert rest[0] == f"  cat    found  score {cat['boxes'][0]['score']:.2f}  box {box}"
    assert rest[-1] == f"  pizza  no     {pizza['reason']}"
    assert not pizza["found"]


def test_json_is_one_document_and_nothing_else(tmp_path):
    result = cliploc_(
        "localize", CAT, "no.jpg", COFFEE, "-p", "cat", "--json", "--out", tmp_path, "--threshold", "auto", *FAST
    )
    document = json.loads(result.out)
    assert result.code == 1
    assert [picture["file"] for picture in document["pictures"]] == [str(CAT), str(COFFEE)]
    assert document["failures"] == [{"file": "no.jpg", "error": "no.jpg: no such file: check the path"}]
    settings = document["settings"]
    assert (settings["model"], settings["method"], settings["threshold"]) == ("mini", "cam", "auto")
    assert settings["interpolation"] == "bicubic"
    assert (settings["image_size"], settings["templates"]) == ([224, 224], ["a photo of a {}."])
    assert document == json.loads((tmp_path / "results.json").read_text())


def test_any_file_name_is_shown_and_written_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["[bold]x[red].png", "a b.png", "猫.png", "-p.png", "Ünï — ©.png", ":smile:.png", "tab\tnewline\n.png"]
    for name in names:
        shutil.copy(CAT, tmp_path / name)
    asked = [one for name in names for one in (name, f"no {name}")]
    result = cliploc_("localize", "-p", "cat", "-p", "[cat]", "--out", "out", *FAST, "--", *asked)
    shown = [name.replace("\t", "\\t").replace("\n", "\\n") for name in names]
    assert result.code == 1
    assert {f"{one}  451×300" for one in shown} <= set(result.out.splitlines())
    assert result.out.count("\n  [cat]  ") == len(names)
    assert result.err.splitlines()[: len(names)] == [f"failed: no {one}: no such file: check the path" for one in shown]
    assert all((tmp_path / "out" / f"{name[:-4]}_overlay.jpg").exists() for name in names)
    assert [one["file"] for one in json.loads((tmp_path / "out/results.json").read_text())["pictures"]] == names


def test_a_file_name_that_is_no_utf_8(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    shutil.copy(CAT, tmp_path / name)
    result = succeeded("localize", tmp_path / name, "-p", "cat", "--out", tmp_path / "out", *FAST)
    assert "caf\\udce9.png" in result.out
    picture = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))["pictures"][0]
    assert (tmp_path / "out" / picture["overlay"]).exists()


def test_pictures_of_one_stem_do_not_overwrite_each_other_nor_what_was_given(tmp_path):
    for folder, name in (("a", "cat.jpg"), ("b", "cat.jpg"), ("b", "CAT.png")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(CAT, tmp_path / folder / name)
    given = tmp_path / "cat_overlay.jpg"  # a picture that is called like an overlay, in the output folder
    shutil.copy(COFFEE, given)
    paths = [tmp_path / "a/cat.jpg", tmp_path / "b/cat.jpg", tmp_path / "b/CAT.png", given]
    succeeded("localize", *paths, "-p", "cat", "--out", tmp_path, *FAST)
    assert given.read_bytes() == COFFEE.read_bytes()
    pictures = json.loads((tmp_path / "results.json").read_text())["pictures"]
    overlays = [picture["overlay"] for picture in pictures]
    assert overlays == ["cat_overlay-2.jpg", "cat_overlay-3.jpg", "CAT_overlay-4.jpg", "cat_overlay_overlay.jpg"]
    assert all((tmp_path / overlay).stat().st_size > 1000 for overlay in overlays)


def test_photographs_of_the_package_are_taken_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cliploc_("localize", "demo:cat.jpg", "-p", "cat", "--out", "found", "--save-maps", *FAST)
    assert result.out.startswith("demo:cat.jpg  451×300\n  cat  found")
    assert result.err.splitlines()[-1] == "next: open found/cat_overlay.jpg"
    assert {path.name for path in Path("found").rglob("*.*")} == {"cat_overlay.jpg", "cat.jpg.npy", "results.json"}
    result = cliploc_("annotate", "demo:cat.jpg", "-p", "cat", "--out", "drafts", *FAST)
    assert (result.code, result.err.splitlines()[-1]) == (0, "next: cliploc review drafts")
    assert PhotoRun(["demo:"]).ids["demo:cat.jpg"] == "cat.jpg"
    assert find_pictures("demo:").skipped == []
    assert [one.path for one in find_pictures(["demo:cat.jpg"]).pictures] == [CAT]


def test_what_comes_next_is_a_command_to_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my photos").mkdir()
    shutil.copy(CAT, "my photos")
    asked = ("localize", "my photos", "-p", "house cat", "--out", "found", *FAST)
    result = cliploc_(*asked)
    assert result.err.splitlines()[-1] == "next: cliploc annotate 'my photos' -p 'house cat' --recipe=fast --out drafts"
    assert "next:" not in cliploc_(*asked, "--json").err
    assert "next:" not in cliploc_("localize", CAT, "-p", "cat", *FAST).err


# ------------------------------------------------------------------------------------------------ interrupted, crashed
def _sigint_as_in_a_shell() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # test runners in the background ignore it, and children inherit that


def test_ctrl_c_is_one_line_and_keeps_what_is_done(tmp_path):
    small = ("--batch-size", "1", *FAST)  # so that the first line comes soon
    running = subprocess.Popen(
        [sys.executable, "-m", "cliploc", "localize", *[str(CAT)] * 1000, "-p", "cat", "--out", str(tmp_path), *small],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_sigint_as_in_a_shell,
    )
    assert running.stdout is not None
    assert running.stdout.readline().startswith(str(CAT))
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=240)  # a busy machine
    assert running.returncode == 130
    assert err == "cliploc: interrupted\n"
    pictures = json.loads((tmp_path / "results.json").read_text())["pictures"]
    assert 1 <= len(pictures) < 1000
    assert all((tmp_path / picture["overlay"]).exists() for picture in pictures)


def test_a_reader_that_goes_away_is_no_error():
    running = subprocess.Popen(
        [sys.executable, "-m", "cliploc", *LINES], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    assert running.stderr.read() == ""
    assert running.wait(timeout=240) == 141


LINES = ["methods"]  # without torch


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [LINES, ["--help"]], ids=["lines", "help"])
def test_a_full_disk_under_stdout_is_one_line(command):
    with open("/dev/full", "w") as full:
        running = [sys.executable, "-m", "cliploc", *map(str, command)]
        result = subprocess.run(running, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("cliploc: cannot write to stdout: No space left on device")
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_a_traceback_only_with_debug(monkeypatch):
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(Localizer, "stream", broken)
    assert refused("localize", CAT, "-p", "cat") == (
        "cliploc: an error in cliploc (ZeroDivisionError: one): run it again with --debug, and report it\n"
    )
    result = cliploc_("localize", CAT, "-p", "cat", "--debug")
    assert result.code == 2
    assert "Traceback (most recent call last)" in result.err
    assert "in broken" in result.err


def test_what_was_done_before_a_failure_of_the_model_is_written(tmp_path, monkeypatch):
    stream = Localizer.stream

    def breaks_after_one(self, *arguments, **options):
        yield next(stream(self, *arguments, **options))
        raise ModelError("the tower gave NaN: check the weights")

    monkeypatch.setattr(Localizer, "stream", breaks_after_one)
    result = cliploc_("localize", CAT, COFFEE, "-p", "cat", "--out", tmp_path, *FAST)
    assert (result.code, result.err) == (2, "cliploc: the tower gave NaN: check the weights\n")
    assert len(json.loads((tmp_path / "results.json").read_text())["pictures"]) == 1
    assert (tmp_path / "cat_overlay.jpg").exists()


def test_a_photo_that_cannot_be_drawn_does_not_lose_the_others(tmp_path, monkeypatch):
    draw = overlay.draw_overlay

    def fails_on_the_first(result, **how):
        if result.source == str(CAT):
            raise OSError("encoder error -2")
        return draw(result, **how)

    monkeypatch.setattr(overlay, "draw_overlay", fails_on_the_first)
    result = cliploc_("localize", CAT, COFFEE, "-p", "cat", "--min-presence", "0", "--out", tmp_path, *FAST)
    assert result.code == 1
    line = f"{CAT}: its overlay could not be drawn (OSError: encoder error -2); its results are kept"
    assert result.err.splitlines()[0] == f"failed: {line}"
    document = json.loads((tmp_path / "results.json").read_text())
    assert [picture.get("overlay") for picture in document["pictures"]] == [None, "coffee_overlay.jpg"]
    assert document["pictures"][0]["names"][0]["boxes"]
    assert document["failures"] == [{"file": str(CAT), "error": line}]


# ---------------------------------------------------------------------------------------------------------------- shell
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
CLIPLOC = f"{sys.executable} -m cliploc"


def in_bash(line: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{line}; exit $?"],  # a second command, so that bash stays the parent
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(home), **environment},
        check=False,
    )


@needs_bash
def test_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    done = in_bash(f"{CLIPLOC} --install-completion", tmp_path)
    assert done.returncode == 0, done.stderr
    script = tmp_path / ".bash_completions/cliploc.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert "complete -o default -F _cliploc_completion cliploc" in script.read_text()
    assert in_bash(f"source {script}; complete -p cliploc", tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"), [("cliploc loc", ["localize"]), ("cliploc localize --prec", ["--precision"])]
)
def test_the_shell_is_told_what_may_follow(words: str, expected: list[str]) -> None:
    asked = {"_CLIPLOC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "cliploc"], capture_output=True, text=True, env={**os.environ, **asked}, check=False
    )
    assert done.stdout.split() == expected
    assert not done.stderr


def said(capsys: pytest.CaptureFixture[str]) -> str:
    Terminal().say("failed: a picture", style="red")
    return capsys.readouterr().err


def test_colours_only_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert said(capsys) == "failed: a picture\n"  # no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    assert said(capsys) == "\x1b[31mfailed: a picture\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert said(capsys) == "failed: a picture\n"
