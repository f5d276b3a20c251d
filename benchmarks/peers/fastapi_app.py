"""FastAPI and uvicorn, one process per CPU, with our engine and decoder in FastAPI's thread pool."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from common import OurModel
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port answers."""
    application.state.model = OurModel()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/invocations")
async def invocations(request: Request) -> dict[str, Any]:
    """Answers one image."""
    model: OurModel = request.app.state.model
    return await run_in_threadpool(model.answer, await request.body())


if __name__ == "__main__":
    import uvicorn
    from common import CPUS, PORT

    os.chdir(os.path.dirname(__file__))  # noqa: PTH120  where the workers find this module
    uvicorn.run("fastapi_app:app", host="127.0.0.1", port=PORT, workers=CPUS, log_level="warning", access_log=False)
