"""`bento-tor serve`: run a box."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.options import json_option


@click.command()
@click.option("--config", "config_file", metavar="FILE", help="The box's settings (TOML); options go over them.")
@click.option("--state", metavar="DIR", help="Its state folder: keys, functions, socket.")
@click.option("--listen", metavar="unix:PATH|HOST:PORT", help="Where it listens; by default a socket in its state.")
@click.option("--images", metavar="DIR", help="Where images are.")
@click.option("--control", metavar="HOST:PORT|unix:PATH", envvar="BENTO_TOR_CONTROL", help="Tor's control port.")
@click.option("--publish", is_flag=True, help="Put it up as an onion service (where no setup-relay did).")
@click.option("--single-hop", is_flag=True, help="With --publish: do not hide where it is; on a tor of its own.")
@click.option("--port", type=click.IntRange(1, 65535), help="The onion service's port.  [default: 80]")
@click.option("--policy", "policy_file", metavar="FILE", help="What it offers, in a file of its own.")
@click.option("--host-stats", type=click.Choice(["none", "coarse", "full"]), help="What api.host() may tell.")
@click.option("--rlimits-only", is_flag=True, help="Serve without cgroups, with weaker limits.")
@json_option
def command(
    config_file: str | None,
    policy_file: str | None,
    rlimits_only: bool,
    host_stats: str | None,
    as_json: bool,
    **options: object,
) -> None:
    """Run a box until Ctrl-C or SIGTERM. With --json one object is printed when it is up."""
    from bento_tor.client.onward import reach
    from bento_tor.server.serve import Serving, serve
    from bento_tor.server.settings import BoxConfig, read_config, with_policy_file

    config = read_config(Path(config_file)) if config_file else BoxConfig()
    if policy_file:
        config = with_policy_file(config, Path(policy_file))
    given = {name: value for name, value in options.items() if value not in (None, False)}
    if rlimits_only:
        given["limits"] = "rlimits-only"
    if host_stats:
        given["policy"] = msgspec.structs.replace(config.policy, host_stats=host_stats)
    config = msgspec.structs.replace(config, **given)

    def ready(serving: Serving) -> None:
        if as_json:
            ui.result_json(msgspec.to_builtins(serving))
            return
        where = {
            "box": f"{serving.address}, port {serving.port}, published by us",
            "relay": f"{serving.address}, port {serving.port}, put up by the relay's tor",
            "nobody": "not published: no --publish, and no setup-relay",
        }[serving.owner]
        ui.say(f"the box listens at {serving.socket}")
        ui.result(where)

    ui.say("starting a box")
    serve(config, ready=ready, maybe_reach=reach)
    ui.say("the box has ended")
