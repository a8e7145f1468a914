"""The OpenAPI description, as programs read it."""

import re

import jsonschema_rs
import pytest

from serve_model import ADMIN_PATHS, PREDICT_PATHS, ServeSettings, create_app, routes
from toolkit.serving.http.openapi import IMAGE_BODY, ONE_IMAGE, build_openapi, error_responses, images_body, pixels_body
from toolkit.serving.problems import NOT_READY, OVERLOADED, PROBLEM_TYPES, UNSUPPORTED_FORMAT, UNSUPPORTED_MEDIA_TYPE
from toolkit.serving.routes import inference_protocols
from toolkit.serving.schemas import InferRequest


@pytest.fixture(scope="module")
def described():
    return create_app(ServeSettings(predict_key="a", admin_key="b", max_batch=7)).openapi()


def operations(schema):
    return {(path, method): found for path, methods in schema["paths"].items() for method, found in methods.items()}


def references(part):
    if isinstance(part, dict):
        yield from (value for key, value in part.items() if key == "$ref")
        part = part.values()
    if not isinstance(part, str | int | float | bool | None):
        for one in part:
            yield from references(one)


def test_problem_types_of_one_status_are_described_together():
    found = error_responses(UNSUPPORTED_MEDIA_TYPE, UNSUPPORTED_FORMAT, OVERLOADED, NOT_READY)
    assert set(found) == {"415", "503"}
    assert found["415"]["description"] == f"{UNSUPPORTED_MEDIA_TYPE.title}; {UNSUPPORTED_FORMAT.title}"
    assert found["503"]["description"] == f"{OVERLOADED.title}; {NOT_READY.title}"
    assert set(found["503"]["headers"]) == {"X-Request-ID", "Retry-After"}
    assert set(found["415"]["headers"]) == {"X-Request-ID"}
    assert list(found["415"]["content"]) == ["application/problem+json"]


def test_each_route_is_described_and_nothing_else(described):
    wanted = {
        (route.path, method.lower())
        for route in [*routes.routes, *inference_protocols.routes.routes]
        if route.include_in_schema
        for method in route.methods
    }
    assert set(operations(described)) == wanted
    assert len(wanted) >= 10


def test_the_description_is_valid(described):
    assert re.fullmatch(r"3\.1\.\d", described["openapi"])
    assert set(described["info"]) >= {"title", "version"}
    found = operations(described)
    assert len({operation["operationId"] for operation in found.values()}) == len(found)
    for (path, _method), operation in found.items():
        assert operation["summary"]
        assert operation["tags"]
        assert any(code.startswith("2") for code in operation["responses"]), path
        for code, response in operation["responses"].items():
            assert re.fullmatch("[2-5][0-9][0-9]", code)
            assert response["description"]
            assert all("/" in media for media in response.get("content", {}))
        for parameter in operation.get("parameters", []):
            assert parameter["in"] in ("query", "path", "header", "cookie")
            assert parameter["schema"]
        declared = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))
        for name in operation.get("security", []):
            assert set(name) <= set(described["components"]["securitySchemes"])


def test_references_and_schemas_match(described):
    used = set(references(described))
    assert used == {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}


def test_errors_are_described_as_problem_documents(described):
    for operation in operations(described).values():
        for code, response in operation["responses"].items():
            if code >= "400":
                assert set(response["content"]) == {"application/problem+json"}
                assert response["content"]["application/problem+json"]["schema"] == {
                    "$ref": "#/components/schemas/ProblemDocument"
                }
    assert [one["slug"] for one in described["x-problems"]] == [kind.slug for kind in PROBLEM_TYPES]


def test_bodies_and_keys_are_described(described):
    found = operations(described)
    assert set(found["/predict", "post"]["requestBody"]["content"]) >= {"multipart/form-data", "image/*"}
    files = found["/predict/batch", "post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert files["properties"]["files"]["maxItems"] == 7
    guarded = {path for (path, _), operation in found.items() if operation.get("security")}
    assert guarded == {*PREDICT_PATHS, *ADMIN_PATHS} >= {"/predict", "/invocations", "/admin/reload"}
    for path in guarded:
        assert {"401", "403", "413"} <= set(found[path, "post"]["responses"])
    assert {"400", "413", "415", "422", "500", "503"} <= set(found["/predict", "post"]["responses"])


def test_examples_of_bodies_match_their_schemas(described):
    bodies = {
        path: operation["requestBody"]["content"]["application/json"]
        for (path, _), operation in operations(described).items()
        if path in PREDICT_PATHS and path != "/feedback"
    }
    assert len(bodies) == 5
    for path, body in bodies.items():
        if path.endswith("/infer"):
            [tensor] = InferRequest.model_validate(body["example"]).inputs
            assert (tensor.datatype, tensor.shape, tensor.data) == ("BYTES", [1], [ONE_IMAGE])
        else:
            [(name, value)] = body["example"].items()
            [shape] = [shape for shape in body["schema"]["anyOf"] if shape["required"] == [name]]
            jsonschema_rs.validate(shape, {name: value})
            assert value in (ONE_IMAGE, [ONE_IMAGE])


def test_keys_are_described_only_where_required():
    app = create_app(ServeSettings())
    schema = build_openapi(app, (), 3)
    assert "securitySchemes" not in schema["components"]
    assert not any("401" in operation["responses"] for operation in operations(schema).values())


def test_the_bodies_of_images_are_described():
    assert set(IMAGE_BODY["content"]) == {
        "multipart/form-data", "image/*", "application/octet-stream", "application/json"
    }  # fmt: skip
    batch = images_body(7)["content"]
    assert set(batch) == {"multipart/form-data", "application/json"}
    assert batch["multipart/form-data"]["schema"]["properties"]["files"]["maxItems"] == 7
    shapes = batch["application/json"]["schema"]["anyOf"]
    assert [shape["required"] for shape in shapes] == [["image"], ["inputs"], ["instances"]]
    inputs, instances = shapes[1]["properties"]["inputs"], shapes[2]["properties"]["instances"]
    assert inputs["anyOf"][0] == instances
    assert instances["maxItems"] == 7
    assert set(pixels_body()["content"]) == {*batch, "image/*"}
