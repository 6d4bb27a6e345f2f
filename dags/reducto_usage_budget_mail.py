"""
# A mail when the month's projected usage exceeds the budget

On the first of a month one sensor for each organization starts to wait in the triggerer, until the month's projected
usage exceeds the organization's budget. The projection uses the means of the weekdays over the last four weeks. The
owners then get a mail with the sensor's reading. If the month stays within its budget, the sensor is skipped.

Needs the SMTP provider (`apache-airflow-providers-smtp`) and its connection `smtp_default`. For Slack use
`SlackNotifier` of the Slack provider with `text=MESSAGE` instead, or any other notifier. If a notifier fails, that is
only logged, since the sensor has succeeded by then. If a message must not be lost, send it in a task that follows the
sensor.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import DAG
from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from reducto_organizations import ORGANIZATIONS

from reducto_provider.sensors.threshold import ReductoUsageThresholdSensor

# A notifier's texts are templates, rendered after the sensor has ended. The sensor's XCom is the reading.
READING = "{% set reading = ti.xcom_pull(task_ids=ti.task_id) %}"
SUBJECT = READING + "Reducto: {{ reading.org_id }} is on its way past its budget"
MESSAGE = READING + (
    "{{ reading.org_id | e }} used {{ '{:,.0f}'.format(reading.used) }} {{ reading.metric }} since "
    "{{ reading.usage_start_date }}"
    "{% if reading.projected %}, and at this rate comes to {{ '{:,.0f}'.format(reading.value) }} by "
    "{{ reading.usage_end_date }}{% endif %}. "
    "Its budget is {{ '{:,.0f}'.format(reading.threshold) }}."
)

with DAG(
    dag_id="reducto_usage_budget_mail",
    schedule="@monthly",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    doc_md=__doc__,
    tags=["reducto", "example"],
):
    for organization in ORGANIZATIONS:
        ReductoUsageThresholdSensor(
            task_id=f"projected_{organization['id']}",
            org_id=organization["id"],
            reducto_conn_id=organization["connection"],
            threshold=organization["budget"],
            metric=organization["metric"],
            window="month",
            projected=True,
            start_from_trigger=True,
            poke_interval=timedelta(hours=6),
            timeout=timedelta(days=32),
            on_success_callback=SmtpNotifier(
                to=organization["owners"], from_email="airflow@localhost", subject=SUBJECT, html_content=MESSAGE
            ),
        )
