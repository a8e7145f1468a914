"""State, errors and limits over HTTP."""

import asyncio
import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_model import ServeSettings, create_app
from support import MAX_WAIT_S
from support.colours import COLOURS, encode
from support.running_service import GREEN, RED, BlockingEngine, problem, use_engine, wait_until
from toolkit.images.decoding import load_image
=======
from support.running_service import (
    GREEN,
    RED,
    BlockingEngine,
    problem,
    use_engine,
    wait_until,
)
