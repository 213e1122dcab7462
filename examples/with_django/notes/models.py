"""A note, and how often it was read."""

from django.db import models


class Note(models.Model):
    text = models.TextField()
    tags = models.JSONField(default=list)
    written = models.DateTimeField(auto_now_add=True)
    reads = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ("-written", "-pk")

    def __str__(self):
        return self.text[:50]
