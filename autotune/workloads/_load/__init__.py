"""The HTTP load client: traffic, arrivals, the worker processes that send it, and the summary of what they saw.

`traffic`, `arrivals`, `exchange` and `worker` run inside the worker processes and import the standard library and orjson
alone, so that a worker starts fast and its event loop stays short.
"""
