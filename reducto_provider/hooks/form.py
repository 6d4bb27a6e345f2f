"""The connection form for Airflow before 3.2, which reads it from the hook and not from provider info."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reducto_provider.provider_info import get_provider_info

if TYPE_CHECKING:
    from collections.abc import Mapping


def field_behaviour() -> dict[str, Any]:
    """Return which of Airflow's own fields are hidden, and the labels and placeholders of all fields."""
    form = _connection_type()
    return {name.replace("-", "_"): value for name, value in form["ui-field-behaviour"].items()}


def widgets() -> dict[str, Any]:
    """
    Return a WTForms field for each extra. Numbers are text fields, since WTForms' integers take no fraction.

    :raises ImportError: if the packages of the form are missing. The web server of Airflow 2 has them, and the API
        server of Airflow 3.0 and 3.1 provides classes in their place.
    """
    from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget, BS3TextFieldWidget
    from wtforms import PasswordField, StringField

    def field(definition: Mapping[str, Any]) -> Any:
        about = {"description": definition["description"]}
        if definition["schema"].get("format") == "password":
            return PasswordField(definition["label"], widget=BS3PasswordFieldWidget(), **about)
        return StringField(definition["label"], widget=BS3TextFieldWidget(), **about)

    return {name: field(definition) for name, definition in _connection_type()["conn-fields"].items()}


def _connection_type() -> dict[str, Any]:
    [connection_type] = get_provider_info()["connection-types"]
    return dict(connection_type)
