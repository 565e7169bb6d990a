"""What the client of the Compute API makes of answers, without any request."""

import pytest
import requests
from ansible.module_utils import gcp_client

PAGE = b"""<!DOCTYPE html><html><head><title>502 Server Error</title><style>body { color: red }</style></head>
<body><h1>Error: Server Error</h1><p>Please try again in 30 seconds.</p></body></html>"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (PAGE, "GET x: 502 502 Server Error Error: Server Error Please try again in 30 seconds."),
        (b"upstream is away", "GET x: 502 upstream is away."),
        (b"", "GET x: 502 Bad Gateway."),
        (b'{"error": "away"}', 'GET x: 502 {"error": "away"}.'),
    ],
)
def test_an_answer_that_is_not_googles_is_told_without_markup(body, said):
    answer = requests.Response()
    answer.status_code, answer.reason, answer._content = 502, "Bad Gateway", body
    assert str(gcp_client.answer_error(answer, "GET x")) == said


def test_a_request_is_sent_at_least_once():
    client = gcp_client.Client("p", gcp_client.credentials_for(environ={"GCP_ACCESS_TOKEN": "t"}), tries=0)
    assert client.tries == 1
