"""One table."""

from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=100)
    data = models.JSONField(default=dict)
    made = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "django_site"
