"""The load client: sends requests one after another and prints what came of each."""

import http.client
import json
import sys


def main():
    port, requests = int(sys.argv[1]), int(sys.argv[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    for number in range(requests):
        try:
            connection.request("POST", "/v1/completions", json.dumps({"prompt": f"n{number}", "max_tokens": 4}))
            usage = json.loads(connection.getresponse().read())["usage"]
            print(json.dumps({"tokens": usage["completion_tokens"]}), flush=True)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            print(json.dumps({"error": type(error).__name__}), flush=True)


if __name__ == "__main__":
    main()
