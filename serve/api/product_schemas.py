"""What goes over the wire when a product is put, changed or deleted."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ProductChange(BaseModel):
    """What a product is from now on; what is not given stays as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"price": 42.5, "currency": "EUR", "stock": 3}]})

    image_base64: str | None = Field(None, description="its photo, in place of those it has; multipart sends it as `image`")
    image_uri: str | None = Field(
        None,
        pattern=r"^[a-z0-9]+://\S+$",
        max_length=2000,
        description="where the catalog keeps the photo; none = this server does",
    )
    title: str = Field("", min_length=1, max_length=1000)
    description: str | None = Field(None, max_length=20_000)
    category: str | None = Field(None, max_length=500, pattern=r"^[^/]+(/[^/]+)*$", examples=["apparel/hoodies"])
    price: float | None = Field(None, ge=0, allow_inf_nan=False)
    currency: str | None = Field(None, pattern="^[A-Z]{3}$", examples=["EUR"])
    available: bool = Field(True, description="without it: whether `stock` is above 0, where that is given")
    stock: int | None = Field(None, ge=0, le=2**31 - 1)
    gender: str | None = Field(None, max_length=100)
    brand: str | None = Field(None, max_length=200)
    seller: str | None = Field(None, max_length=200)
    color: str | None = Field(None, max_length=100)
    group_id: str | None = Field(None, max_length=256)
    popularity: float | None = Field(None, allow_inf_nan=False)


class ProductChanged(BaseModel):
    """The change is durable; every searcher knows it within two seconds."""

    product_id: str
    kind: Literal["put", "change", "delete"] = Field(description="put = with a new photo, change = of attributes alone")
    photos: int = Field(description="how many the product has now")
    at: int = Field(description="microseconds since 1970; of one product, later ones count")
