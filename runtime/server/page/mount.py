"""The page in the app, from when the engine is loaded to the end of the server."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Mount

from salmonrun.runtime.server.config import PAGE
from salmonrun.runtime.server.page import markup
from salmonrun.runtime.server.page.visits import Visits
from salmonrun.runtime.server.service import Service

SWEEP_S = 15.0


@asynccontextmanager
async def open_page(app: FastAPI, service: Service) -> AsyncIterator[Visits]:
    """Answer under /page until the context ends; files of visitors end with it."""
    with tempfile.TemporaryDirectory(prefix="salmonrun-page-") as folder:
        visits = Visits(service, Path(folder))
        service.let_go = visits.kept.drop_unused
        mounted = await service.in_thread(lambda: _mount(app, service, visits, folder))
        sweeping = asyncio.create_task(_sweep(service, visits))
        try:
            async with app.router.lifespan_context(app):  # Gradio's own queue begins and ends
                yield visits
        finally:
            mounted.stop_event.set()  # what stays open as long as a page does, to see that it is there
            sweeping.cancel()
            visits.kept.close()


def _mount(app: FastAPI, service: Service, visits: Visits, folder: str) -> Any:
    with _environment({"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}):
        import gradio

        from salmonrun.runtime.server.page.layout import THEME, layout

        gradio.mount_gradio_app(
            app,
            layout(visits),
            PAGE,
            theme=THEME,
            css=markup.asset("style.css"),
            footer_links=[],
            run_history=False,
            max_file_size=service.config.max_body_mib * 2**20,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
        )
    return next(route.app for route in app.routes if isinstance(route, Mount) and route.path == PAGE)


async def _sweep(service: Service, visits: Visits) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        await service.in_thread(visits.sweep)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Gradio reads these settings when it is imported and its components are made, and nowhere else."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
