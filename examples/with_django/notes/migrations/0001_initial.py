"""The table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Note",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("text", models.TextField()),
                ("tags", models.JSONField(default=list)),
                ("written", models.DateTimeField(auto_now_add=True)),
                ("reads", models.PositiveIntegerField(default=0)),
            ],
            options={"ordering": ("-written", "-pk")},
        ),
    )
