"""/NAME is the view of that name."""

from django.urls import path

from . import views

urlpatterns = [path(name, getattr(views, name)) for name in views.NAMES]
