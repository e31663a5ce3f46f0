"""Verbs that make data ready."""

from __future__ import annotations

from pipelines.verbs.common import ConfigPath, Overrides, app, as_asked, clear_errors, tell


@app.command("prepare")
def prepare(config: ConfigPath, overrides: Overrides = None) -> None:
    """Turn published files into shards in data.prepared, cropped and resized, which training then reads.

    Examples:

    python run.py prepare configs/imagenet32.yaml

    python run.py prepare configs/celeba64_composition.yaml data.crop=178 data.prepared=data/prepared/celeba178
    """
    with clear_errors():
        from cdrl.config_files import load_config
        from pipelines.jobs.preparing import run_preparation
        from pipelines.jobs.training import verb_after_data

        settings = load_config(config, overrides or ())
        for line in run_preparation(settings):
            tell(line)
        tell(
            f"shards of both splits in {settings.data.prepared}",
            verb_after_data(settings),
            *as_asked(config, overrides),
        )
