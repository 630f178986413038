"""Uploads in parts, and files that expire"""

from alembic import op
import sqlalchemy as sa

revision = '0006'
down_revision = '0005'


def _seq() -> sa.Column:
    return sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False)


def upgrade() -> None:
    op.add_column('files', sa.Column('expires_at', sa.BigInteger(), nullable=True))
    op.create_index('ix_files_expires_at', 'files', ['expires_at'], unique=False)
    op.create_table('uploads',
    _seq(),
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('project', sa.String(length=64), server_default='proj_default', nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('expires_at', sa.BigInteger(), nullable=False),
    sa.Column('status', sa.String(length=16), nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('received_bytes', sa.BigInteger(), nullable=False),
    sa.Column('filename', sa.Text(), nullable=False),
    sa.Column('purpose', sa.String(length=32), nullable=False),
    sa.Column('mime_type', sa.Text(), nullable=False),
    sa.Column('file_life_s', sa.BigInteger(), nullable=True),
    sa.Column('file_id', sa.String(length=64), nullable=True),
    sa.PrimaryKeyConstraint('seq'),
    sa.UniqueConstraint('id'),
    sqlite_autoincrement=True
    )
    op.create_index('uploads_in_status', 'uploads', ['status', 'expires_at'], unique=False)
    op.create_table('upload_parts',
    _seq(),
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('upload_id', sa.String(length=64), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('blob', sa.Text(), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.ForeignKeyConstraint(['upload_id'], ['uploads.id'], ),
    sa.PrimaryKeyConstraint('seq'),
    sa.UniqueConstraint('id'),
    sqlite_autoincrement=True
    )
    op.create_index('ix_upload_parts_upload_id', 'upload_parts', ['upload_id'], unique=False)
