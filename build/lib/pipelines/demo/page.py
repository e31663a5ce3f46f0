"""The page itself: Gradio's components, and which answer each button asks for."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

# Read once, when Gradio is imported: no word of use leaves this machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from PIL import Image

from cdrl.config import ConfigError
from cdrl.data import DataError
from cdrl.runs.run import RunError, os_error_in_words
from pipelines.decoding import to_pil
from pipelines.demo import answers
from pipelines.demo.runs import DemoRuns

_NO_CLASS = "no class"
_OWN_STEPS = "the run's own"
_STEPS = [_OWN_STEPS, "auto", "1", "5", "10", "15", "30"]
_IGNORED, _ON, _OFF = "ignored", "yes", "no"
_SEED: dict[str, Any] = {"precision": 0, "minimum": 0}
# Fonts of the reader's own machine: the page loads nothing from elsewhere.
_FONTS: dict[str, Any] = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
# Galleries are as high as their images; two of these go side by side on a phone.
_STYLE = """
.gradio-container { max-width: 60rem !important; width: 100% !important; margin: auto; }
.grid-wrap { min-height: 0 !important; height: auto !important; max-height: none !important; }
.block:has(> .gallery-container) { height: auto !important; min-height: 12rem; }
@media (max-width: 640px) {
  .gradio-container > main, .gradio-container .main { padding: .5rem !important; }
  .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""


def _in_words(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The same answer; mistakes that a user can mend are shown on the page in words."""

    @functools.wraps(answer)
    def asked(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except (ConfigError, DataError, RunError, ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        except OSError as error:
            raise gr.Error(os_error_in_words(error), print_exception=False) from None

    return asked


def build_page(runs: DemoRuns) -> gr.Blocks:
    """The page for some runs, one computation at a time."""
    with gr.Blocks(title="CDRL", analytics_enabled=False) as page:
        gr.Markdown("# CDRL\nEnergy-based models by cooperative diffusion recovery likelihood, to try.")
        run = gr.Dropdown(runs.names, value=runs.names[0], label="Run", elem_id="run")
        with gr.Tab("Generate"):
            _generate(runs, run)
        with gr.Tab("Compose"):
            _compose(runs, run)
        with gr.Tab("Fill in"):
            _fill_in(runs, run)
        with gr.Tab("How likely"):
            _how_likely(runs, run)
        with gr.Tab("Between"):
            _between(runs, run)
    return page.queue(default_concurrency_limit=1)


def serve(page: gr.Blocks, port: int | None, *, show: bool = False) -> str:
    """Serve the page on the loopback address alone, in threads of its own; returns its address.

    Args:
        port: the first free one from 7860 on where there is none.
        show: open it in a browser.

    Raises:
        OSError: the port is taken.
    """
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        inbrowser=show,
        share=False,
        ssr_mode=False,
        quiet=True,
        show_error=True,
        footer_links=[],
        prevent_thread_lock=True,
        theme=gr.themes.Default(**_FONTS),
        css=_STYLE,
    )
    return address


def _generate(runs: DemoRuns, run: gr.Dropdown) -> None:
    with gr.Row():
        count = gr.Slider(1, 16, 4, step=1, label="Images")
        seed = gr.Number(0, label="Seed of the first", **_SEED)
        label = _classes(runs, run)
    with gr.Row():
        guidance = gr.Slider(0, 3, 0, step=0.1, label="Guidance weight", info="above 0 it needs a class")
        steps = gr.Dropdown(_STEPS, value=_OWN_STEPS, label="Langevin steps a level")
    button = gr.Button("Generate", variant="primary", elem_id="generate")
    images, way = _gallery("Images", "images"), _strip("way")

    @_in_words
    def answer(name: str, count: int, seed: int, label: str, guidance: float, steps: str) -> tuple[Any, Any]:
        drawn = answers.generated(runs.pipeline(name), count, _seed(seed), _class(label), guidance, _steps(steps))
        return drawn.images, drawn.way

    button.click(answer, [run, count, seed, label, guidance, steps], [images, way])


def _compose(runs: DemoRuns, run: gr.Dropdown) -> None:
    @gr.render(inputs=run)
    def shown(name: str) -> None:
        attributes = runs.offer(name).attributes
        if not attributes:
            able = [each for each in runs.names if runs.offer(each).attributes]
            instead = f"Choose {' or '.join(able)} above." if able else "Train one with `data.labels: attributes`."
            gr.Markdown(f"`{name}` was not trained on attributes, so there is nothing to compose. {instead}")
            return
        # What is shown by request has to say that it takes input; elsewhere Gradio sees by itself.
        with gr.Row():
            wanted = [
                gr.Radio([_ON, _OFF, _IGNORED], value=_IGNORED, label=attribute.replace("_", " "), interactive=True)
                for attribute in attributes
            ]
        with gr.Row():
            count = gr.Slider(1, 16, 4, step=1, label="Images", interactive=True)
            seed = gr.Number(0, label="Seed of the first", interactive=True, **_SEED)
            weight = gr.Slider(0, 3, 1, step=0.1, label="Guidance weight", interactive=True)
            steps = gr.Dropdown(_STEPS, value=_OWN_STEPS, label="Langevin steps a level", interactive=True)
        button = gr.Button("Compose", variant="primary", elem_id="compose")
        images, way = _gallery("Images", "composed"), _strip("composed-way")

        @_in_words
        def answer(count: int, seed: int, weight: float, steps: str, *values: str) -> tuple[Any, Any]:
            chosen = [(each, value) for each, value in zip(attributes, values, strict=True) if value != _IGNORED]
            if not chosen:
                raise ValueError("every attribute is ignored: choose yes or no for one at least")
            concepts = [f"{attribute}={int(value == _ON)}" for attribute, value in chosen]
            drawn = answers.composed(runs.pipeline(name), count, _seed(seed), concepts, weight, _steps(steps))
            return drawn.images, drawn.way

        button.click(answer, [count, seed, weight, steps, *wanted], [images, way])


def _fill_in(runs: DemoRuns, run: gr.Dropdown) -> None:
    gr.Markdown("Upload a picture, or take a held-out one, and paint over what is to be drawn anew.")
    take = gr.Button("Take a held-out image", elem_id="take-to-fill")
    editor = gr.ImageEditor(
        label="Picture and hole",
        type="pil",
        sources=("upload", "clipboard"),
        transforms=(),
        brush=gr.Brush(default_size=40, colors=["#808080"], color_mode="fixed"),
        layers=False,
        format="png",
        canvas_size=(384, 384),
        elem_id="editor",
    )
    with gr.Row():
        fills = gr.Slider(1, 8, 4, step=1, label="Fills")
        seed = gr.Number(0, label="Seed of the first", **_SEED)
    button = gr.Button("Fill in", variant="primary", elem_id="fill")
    gr.Markdown("#### What is known")
    known = gr.Image(show_label=False, elem_id="known", interactive=False, format="png", height=200, buttons=[])
    images = _gallery("Filled in", "filled")

    @_in_words
    def answer(name: str, drawn: dict[str, Any] | None, fills: int, seed: int) -> tuple[Any, Any]:
        if not drawn or drawn["background"] is None:
            raise ValueError("there is no picture yet: upload one, or take a held-out one")
        if not drawn["layers"]:
            raise ValueError("nothing is hidden yet: paint over what is to be drawn anew")
        return answers.filled(runs.pipeline(name), drawn["background"], drawn["layers"], fills, _seed(seed))

    take.click(_held_out(runs), [run, turn := gr.State(0)], [editor, turn])
    button.click(answer, [run, editor, fills, seed], [known, images])


def _how_likely(runs: DemoRuns, run: gr.Dropdown) -> None:
    gr.Markdown("A picture's energies beside those of the images that the run was trained on, and of held-out ones.")
    take = gr.Button("Take a held-out image", elem_id="take-to-score")
    sources: Any = ["upload", "clipboard"]
    picture = gr.Image(label="Picture", type="pil", sources=sources, height=260, elem_id="picture", format="png")
    button = gr.Button("How likely is it?", variant="primary", elem_id="score")
    words = gr.Markdown(elem_id="words")
    gr.Markdown("#### Its energy at every level")
    histograms = _picture("histograms")
    gr.Markdown("#### Its energy at level 0, when the picture is changed")
    changes = _picture("changes")

    @_in_words
    def answer(name: str, picture: Image.Image | None) -> tuple[Any, Any, Any]:
        if picture is None:
            raise ValueError("there is no picture yet: upload one, or take a held-out one")
        found = answers.likelihood(runs.pipeline(name), runs.known(name), picture)
        return found.words, found.histograms, found.changes

    take.click(_held_out(runs), [run, turn := gr.State(0)], [picture, turn])
    button.click(answer, [run, picture], [words, histograms, changes])


def _between(runs: DemoRuns, run: gr.Dropdown) -> None:
    with gr.Row():
        first = gr.Number(0, label="Seed at one end", **_SEED)
        second = gr.Number(1, label="Seed at the other", **_SEED)
        label = _classes(runs, run)
        steps = gr.Dropdown(_STEPS, value=_OWN_STEPS, label="Langevin steps a level")
    button = gr.Button("Draw the way", variant="primary", elem_id="between")
    place = gr.Slider(0, 100, 50, step=1, label="From one to the other, in per cent", elem_id="place")
    image = _picture("on-the-way")
    strip, drawn = _gallery("All", "strip"), gr.State([])

    def at(images: list[Image.Image], share: float) -> Image.Image | None:
        return images[round(share / 100 * (len(images) - 1))] if images else None

    @_in_words
    def answer(name: str, first: int, second: int, label: str, steps: str, share: float) -> tuple[Any, Any, Any]:
        images = answers.between(runs.pipeline(name), _seed(first), _seed(second), _class(label), _steps(steps))
        return images, images, at(images, share)

    button.click(answer, [run, first, second, label, steps, place], [strip, drawn, image])
    place.change(at, [drawn, place], image, show_progress="hidden")


def _classes(runs: DemoRuns, run: gr.Dropdown) -> gr.Dropdown:
    """A choice of the run's classes; there is nothing to choose where it has none."""

    def update(name: str) -> gr.Dropdown:
        names = runs.offer(name).class_names
        return gr.Dropdown([_NO_CLASS, *names], value=_NO_CLASS, label="Class", interactive=bool(names))

    chosen = update(runs.names[0])
    run.change(update, run, chosen, show_progress="hidden")
    return chosen


def _held_out(runs: DemoRuns) -> Callable[[str, int], tuple[Image.Image, int]]:
    """One held-out image after the other."""

    @_in_words
    def take(name: str, turn: int) -> tuple[Image.Image, int]:
        images = runs.known(name).held_out
        (picture,) = answers.enlarged(to_pil(images[turn % len(images)][None]))
        return picture.convert("RGB"), turn + 1

    return take


def _gallery(heading: str, name: str) -> gr.Gallery:
    gr.Markdown(f"#### {heading}")
    return gr.Gallery(label=heading, show_label=False, elem_id=name, columns=4, object_fit="contain", format="png")


def _strip(name: str) -> gr.Image:
    gr.Markdown("#### The way to the first: from noise, level by level")
    return _picture(name)


def _picture(name: str) -> gr.Image:
    buttons: Any = ["download", "fullscreen"]
    return gr.Image(show_label=False, elem_id=name, interactive=False, format="png", buttons=buttons)


def _seed(value: float | None) -> int:
    if value is None:
        raise ValueError("a seed is missing: give a whole number, such as 0")
    return int(value)


def _class(label: str) -> str | None:
    return None if label == _NO_CLASS else label


def _steps(text: str) -> answers.Steps:
    return None if text == _OWN_STEPS else text if text == "auto" else int(text)
