"""How the help is laid out: commands in groups, in the order in which a newcomer meets them, and examples."""

import typer

PANELS = {
    "Begin here": ("example", "doctor"),
    "Maps": ("predict", "validate", "info", "serve", "batch"),
    "From maps": ("derive", "compare", "change"),
    "How wrong": ("evaluate", "gedi", "calibrate"),
    "Training": ("chm", "dataset", "pretrain", "train", "probe", "distill", "curate", "pack"),
    "Data and models": ("fetch", "models"),
}
"""Commands of each group; one that is listed nowhere stands in a group of its own."""

EXAMPLES = {
    "": (
        "canopy example demo",
        "canopy predict --aoi demo/region.geojson --imagery demo/scenes --out heights.tif",
        "canopy evaluate --pred heights.tif --truth lidar.tif",
    ),
    "predict": (
        "canopy predict --aoi area.gpkg --imagery scenes/",
        "canopy predict --aoi -110.645,44.962,-110.642,44.964 --uncertainty --out map.tif",
        "canopy predict --aoi area.gpkg --imagery big.vrt --dry-run",
    ),
    "change": (
        "canopy change map2018.tif map2023.tif --out change.tif",
        "canopy change lidar.tif map.tif --dates 2018-07-01 own --error-m 0.5 own --out change.tif",
    ),
    "evaluate": ("canopy evaluate --pred map.tif --truth lidar.tif --report page/",),
    "chm": ("canopy chm clouds/*.laz --out lidar.tif --resolution 1",),
    "calibrate": (
        "canopy calibrate --pred map.tif --shots shots.parquet --out calibration.json",
        "canopy calibrate --pred map.tif --apply calibration.json --out calibrated.tif",
    ),
    "train": ("canopy train configs/train-frozen.yaml --set encoder=canopy-tiny",),
    "pretrain": ("canopy pretrain configs/pretrain-small.yaml --resume",),
    "example": ("canopy example demo", "canopy example --forest forest"),
}
"""Examples under the help of a command; under the name "" those of the whole."""


def arrange(app: typer.Typer) -> None:
    """Put the commands of an app into groups, in their order, with examples below."""
    ranks = {name: (number, panel) for number, (panel, name) in enumerate(_listed())}
    last = len(ranks), "Other"
    for command in app.registered_commands:
        command.rich_help_panel = ranks.get(_name(command), last)[1]
        if _name(command) in EXAMPLES:
            command.epilog = _epilog(_name(command))
    for group in app.registered_groups:
        group.rich_help_panel = ranks.get(_name(group), last)[1]
    # Typer lists commands and groups apart, each in the order of its own list.
    app.registered_commands.sort(key=lambda entry: ranks.get(_name(entry), last)[0])
    app.registered_groups.sort(key=lambda entry: ranks.get(_name(entry), last)[0])
    app.info.epilog = _epilog("")


def _listed() -> list[tuple[str, str]]:
    return [(panel, name) for panel, names in PANELS.items() for name in names]


def _name(entry: typer.models.CommandInfo | typer.models.TyperInfo) -> str:
    """Return the name by which an entry is called."""
    if entry.name:
        return str(entry.name)
    callback = entry.callback
    return callback.__name__.replace("_", "-") if callback is not None else ""


def _epilog(name: str) -> str:
    """Return examples as paragraphs, because the help joins the lines of one."""
    return "\n\n".join(("Examples:", *EXAMPLES[name]))
